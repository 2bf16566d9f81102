//! See `romulus_fuzz::wire`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(wire);
