//! See `romulus_fuzz::resync`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(resync);
