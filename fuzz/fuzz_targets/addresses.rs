//! See `romulus_fuzz::addresses`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(addresses);
