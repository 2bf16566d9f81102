//! See `romulus_fuzz::state`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(state);
