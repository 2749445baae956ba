//! Packing of units, by as many threads as there are.

use flate2::{Compress, Compression, FlushCompress, Status};
use libdeflater::{CompressionLvl, Compressor};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What zlib and `qemu-img` take where nothing is asked for.
const DEFLATE_LEVEL: u32 = 6;
/// On units of 64 KiB level 3, which `qemu-img` takes, is 1 % smaller and needs a quarter more time.
const ZSTD_LEVEL: i32 = 2;
/// QEMU gives its inflater a window of 4 KiB; readers that inflate in pieces find nothing further back.
const QCOW2_WINDOW: u8 = 12;

/// How a unit is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Not at all.
    Plain,
    /// Raw deflate with a window of 4 KiB, where that makes it smaller.
    ShortDeflate,
    /// zlib with its header, always.
    Zlib,
    /// A Zstandard frame, where that makes it smaller.
    Zstd,
}

/// Packs units. Keeps its contexts: making one costs more than packing a unit.
pub(crate) struct Packer {
    method: Method,
    idle: Mutex<Vec<Context>>,
}

enum Context {
    Deflate(Compress),
    Zlib(Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packer({:?})", self.method)
    }
}

impl Packer {
    pub(crate) fn new(method: Method) -> Self {
        Self { method, idle: Mutex::default() }
    }

    /// Appends the packed form of `unit` to `out`. False, and nothing changed, where it is better kept as it is.
    pub(crate) fn pack(&self, unit: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(mut context) = self.take() else { return false };
        let start = out.len();
        let most = match &mut context {
            Context::Zlib(zlib) => zlib.zlib_compress_bound(unit.len()),
            // Not smaller is not worth it.
            _ => unit.len().saturating_sub(1),
        };
        out.resize(start + most, 0);
        let len = context.pack(unit, &mut out[start..]);
        self.lock().push(context);
        out.truncate(start + len.unwrap_or(0));
        len.is_some()
    }

    fn take(&self) -> Option<Context> {
        if self.method == Method::Plain {
            return None;
        }
        if let Some(context) = self.lock().pop() {
            return Some(context);
        }
        Some(match self.method {
            Method::Plain => return None,
            Method::ShortDeflate => {
                let level = Compression::new(DEFLATE_LEVEL);
                Context::Deflate(Compress::new_with_window_bits(level, false, QCOW2_WINDOW))
            }
            Method::Zlib => Context::Zlib(Compressor::new(CompressionLvl::default())),
            Method::Zstd => Context::Zstd(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Context>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context {
    /// Into `out`; how much of it, `None` if it does not fit.
    fn pack(&mut self, unit: &[u8], out: &mut [u8]) -> Option<usize> {
        match self {
            Self::Deflate(deflate) => {
                deflate.reset();
                match deflate.compress(unit, out, FlushCompress::Finish) {
                    Ok(Status::StreamEnd) => usize::try_from(deflate.total_out()).ok(),
                    _ => None,
                }
            }
            Self::Zlib(zlib) => zlib.zlib_compress(unit, out).ok(),
            Self::Zstd(zstd) => zstd.compress_to_buffer(unit, out).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]
    use super::*;
    use vdrecover_formats::codec::{Zstd, inflate, inflate_zlib};

    #[test]
    fn what_is_packed_unpacks_and_noise_stays() {
        let text: Vec<u8> = (0..65_536_u32).map(|i| (i * i / 700) as u8 & 0x3f).collect();
        let mut x = 1_u64;
        let noise: Vec<u8> = (0..65_536)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (x >> 50) as u8
            })
            .collect();
        for method in [Method::Plain, Method::ShortDeflate, Method::Zlib, Method::Zstd] {
            let packer = Packer::new(method);
            for unit in [&text, &noise, &text] {
                let mut out = vec![9; 3];
                let smaller = packer.pack(unit, &mut out);
                assert_eq!(smaller, method == Method::Zlib || method != Method::Plain && unit == &text, "{method:?}");
                assert_eq!(out[..3], [9; 3]);
                let mut back = vec![0; unit.len()];
                match method {
                    _ if !smaller => assert_eq!(out.len(), 3),
                    Method::ShortDeflate => drop(inflate(&out[3..], &mut back).unwrap()),
                    Method::Zlib => drop(inflate_zlib(&out[3..], &mut back).unwrap()),
                    _ => drop(Zstd::default().decode(&out[3..], &mut back).unwrap()),
                }
                assert!(!smaller || &back == unit);
            }
        }
    }

    #[test]
    fn a_cluster_of_qcow2_needs_no_more_than_4_kib_of_history() {
        // The same noise every 5000 bytes: a longer window would find it.
        let mut x = 1_u64;
        let noise: Vec<u8> = (0..5000)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (x >> 50) as u8
            })
            .collect();
        let unit: Vec<u8> = noise.iter().copied().cycle().take(65_536).collect();
        assert!(!Packer::new(Method::ShortDeflate).pack(&unit, &mut Vec::new()));
        assert!(Packer::new(Method::Zlib).pack(&unit, &mut Vec::new()));
    }
}
