//! Telephony on top of the machines: what is measured of calls and of their media.
