//! See `romulus_fuzz::config`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(config);
