//! Writes the project's own fixtures: partition tables, VMFS datastores, QCOW2 and VMDK images, and the demo image.
//!
//! Nothing here shares code with the readers it tests: each structure is written from its on-disk description alone,
//! so a misreading on one side shows as a difference. The output is a function of the arguments: no clock, no random
//! source, no hash order.
//!
//! ```
//! use vdrecover_testdata::vmfs::{Content, Layout, Version, Vmfs, VmfsSpec};
//!
//! let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 2 << 30));
//! store.mkdir("vm");
//! store.file("vm/notes.txt", Content::bytes(*b"hello\n"), &Layout::default());
//! let place = store.locate("vm/notes.txt");
//! let devices = store.finish();
//! assert_eq!(devices.len(), 1);
//! assert!(place.fd_lv > 0x72_0000);
//! ```
#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a fixture that cannot be made as asked must stop the run with a message; there is nobody to recover for"
)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "on-disk fields are narrower than the arithmetic, and the values are the generator's own"
)]

pub mod anchors;
pub mod demo;
pub mod device;
pub mod disks;
pub mod ewf;
pub mod gpt;
pub mod guest;
pub mod iso;
pub mod json;
pub mod ova;
pub mod qcow1;
pub mod qcow2;
pub mod samples;
pub mod scenes;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
pub mod vmdk_cases;
pub mod vmdk_stream;
pub mod vmfs;
pub mod vmx;

pub use device::Device;

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}
