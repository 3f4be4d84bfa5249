//! Shared helpers of the tests: fixtures, tolerance table, comparison.
