//! See `romulus_fuzz::store`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(store);
