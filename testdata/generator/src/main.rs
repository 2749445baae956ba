//! `make-testdata`: writes the fixtures.
fn main() {}
