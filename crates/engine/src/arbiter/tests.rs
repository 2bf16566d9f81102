//! The store under every fault, and a real server on this computer's own addresses.

mod faulty;
mod served;
mod stored;
mod synced;
