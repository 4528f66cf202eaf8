//! Tests of the whole.
pub mod nested;
