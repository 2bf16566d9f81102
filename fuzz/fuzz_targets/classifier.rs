//! See `romulus_fuzz::classifier`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(classifier);
