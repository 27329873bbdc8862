"""Tests of the operators that are not run again with another implementation in their place.

They are about what comes before the implementation: checks of arguments, formulas of gradients
(whose operators have tests of their own), compilers and transforms, threads of the C++.
"""

INTERFACE = (
    *("bad_arguments", "what_does_not_fit", "boundaries_of_other_types", "gradcheck", "compile"),
    *("func", "transforms", "second_gradient", "any_number_of_threads"),
)
SELECTED = " and ".join(f"not {name}" for name in INTERFACE)  # for pytest's -k
