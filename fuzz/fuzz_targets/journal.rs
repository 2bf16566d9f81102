//! See `romulus_fuzz::journal`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(journal);
