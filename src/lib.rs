//! vdrecover.
