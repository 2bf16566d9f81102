//! See `romulus_fuzz::replica`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(replica);
