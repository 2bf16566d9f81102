//! The measurements of *Towards High-Availability for IP Telephony using Virtual Machines* (Patnaik, Bijlani, Singh, IMSAA
//! 2010) and of `SIPstone` (Schulzrinne, Narayanan, Lennox, Doyle, 2002): what is measured, in which order, and in which
//! tables. Pure: what measures is elsewhere.

pub mod arrivals;
pub mod jobs;
pub mod tables;
