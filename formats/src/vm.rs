//! A virtual machine's own files: what it is called, which disks it has, which snapshots were taken.

mod dictionary;
mod vmsd;
mod vmx;

pub use dictionary::{Dictionary, MAX_TEXT};
pub use vmsd::{Snapshot, snapshots};
pub use vmx::{Adapter, Hardware, Machine, Slot};
