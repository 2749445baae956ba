//! vdrecover.
fn main() {}
