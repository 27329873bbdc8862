"""A network with a frozen and a free part: conversion, boundaries, sub-networks, certificate."""
