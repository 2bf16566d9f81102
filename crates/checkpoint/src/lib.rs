//! Epochs as bytes.
