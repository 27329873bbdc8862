"""The definition of every operator in plain PyTorch; for devices without a faster one."""
