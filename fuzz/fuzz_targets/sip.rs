//! See `romulus_fuzz::sip`.

#![cfg_attr(fuzzing, no_main)]

romulus_fuzz::target!(sip);
