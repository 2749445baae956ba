//! Fixed-size on-disk records: binrw describes the layout, plain code validates.

use crate::error::Error;
use crate::layer::Layer;
use crate::num::wide;
use crate::read::read_exact;
use binrw::meta::ReadEndian;
use binrw::{BinRead, io::Cursor};

/// A record of fixed size with raw, unchecked fields. A test pins `SIZE` to a literal.
pub trait Record: for<'a> BinRead<Args<'a> = ()> + ReadEndian {
    /// Bytes on disk.
    const SIZE: usize;
    /// In the specification's words.
    const NAME: &'static str;

    /// Parses the record at the start of `bytes`.
    fn parse(bytes: &[u8], at: u64) -> Result<Self, Error> {
        let short = || Error::corrupt(Self::NAME, at, format!("{} bytes, {} are needed", bytes.len(), Self::SIZE));
        let bytes = bytes.get(..Self::SIZE).ok_or_else(short)?;
        Self::read(&mut Cursor::new(bytes)).map_err(|error| Error::corrupt(Self::NAME, at, error.to_string()))
    }

    /// Reads and parses the record at `at`.
    fn load(layer: &dyn Layer, at: u64) -> Result<Self, Error> {
        let mut bytes = vec![0; Self::SIZE];
        read_exact(layer, at, &mut bytes).map_err(|gap| Error::Lost { what: Self::NAME, gap })?;
        Self::parse(&bytes, at)
    }

    /// Where the record ends if it starts at `at`.
    #[must_use]
    fn end(at: u64) -> u64 {
        at.saturating_add(wide(Self::SIZE))
    }
}
