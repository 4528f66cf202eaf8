//! The bzImage container of the Linux boot protocol (Documentation/arch/x86/boot.rst): its setup header, and the
//! compressed vmlinux in it. Everything in it is hostile input.

use super::LinuxError;
use super::decompress::Compression;
use crate::boot::hex;

/// Where the setup header begins, in the image and in the zero page alike.
pub(super) const SETUP_HEADER: usize = 0x1f1;

/// Where it ends at most: the zero page's next field.
pub(super) const SETUP_HEADER_END: usize = 0x290;

/// Bytes of what the boot protocol calls a sector, on any disk.
const SETUP_SECTOR: usize = 512;

/// Number of sectors of real-mode code behind the first; 0 means 4.
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first protocol that says where the payload lies.
const MIN_VERSION: u16 = 0x0208;

/// Largest vmlinux that is expanded. Distributions' have 50 to 70 MiB; with debug information they are no bzImage.
pub(super) const MAX_VMLINUX: u64 = 512 << 20;

/// A bzImage's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct BzImage<'a> {
    /// The bytes from [`SETUP_HEADER`] on.
    pub setup_header: &'a [u8],
    pub payload: &'a [u8],
}

/// What is wrong with the container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The image ends too early.
    #[error("the image ends after {len} bytes, inside its header")]
    Short { len: usize },
    /// A protocol that does not say where the payload lies.
    #[error("boot protocol {MIN_VERSION:#06x} or later is needed, found {version:#06x}")]
    Version { version: u16 },
    /// The header points outside.
    #[error("its payload of {length} bytes at {begin} reaches beyond the image's {len} bytes")]
    Payload { begin: usize, length: usize, len: usize },
    /// None of the formats that Linux is compressed with.
    #[error("its payload begins with {magic}, which is none of gzip, xz, lzma, bzip2, LZ4, lzop and zstd")]
    Compression {
        /// The first bytes in hexadecimal.
        magic: String,
    },
}

/// Whether `image` claims to be a Linux kernel in this container.
pub(super) fn is_bzimage(image: &[u8]) -> bool {
    image.get(MAGIC..MAGIC + 4) == Some(b"HdrS") && image.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

fn word(image: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?))
}

/// Takes the container apart.
///
/// # Errors
/// If its header is cut short, too old, or points outside.
pub(super) fn parse(image: &[u8]) -> Result<BzImage<'_>, HeaderError> {
    let len = image.len();
    let short = || HeaderError::Short { len };
    let version = word(image, VERSION).ok_or_else(short)?;
    let version = u16::try_from(version & 0xffff).unwrap_or_default();
    if version < MIN_VERSION {
        return Err(HeaderError::Version { version });
    }
    // The byte behind the jump instruction is its distance: the header ends where it jumps to.
    let end = MAGIC + usize::from(*image.get(MAGIC - 1).ok_or_else(short)?);
    let setup_header = image.get(SETUP_HEADER..end.min(SETUP_HEADER_END)).ok_or_else(short)?;
    let sectors = match image[SETUP_SECTS] {
        0 => 4,
        count => usize::from(count),
    };
    let place = |at| {
        word(image, at)
            .and_then(|value| usize::try_from(value).ok())
            .ok_or_else(short)
    };
    let (offset, length) = (place(PAYLOAD_OFFSET)?, place(PAYLOAD_LENGTH)?);
    let begin = (sectors + 1) * SETUP_SECTOR + offset;
    let payload = image.get(begin..begin + length);
    let payload = payload.ok_or(HeaderError::Payload { begin, length, len })?;
    Ok(BzImage { setup_header, payload })
}

impl BzImage<'_> {
    /// The vmlinux inside.
    ///
    /// # Errors
    /// If its compression is not known, or it is damaged or too big.
    pub(super) fn vmlinux(&self) -> Result<Vec<u8>, LinuxError> {
        if self.payload.starts_with(b"\x7fELF") {
            return Ok(self.payload.to_vec());
        }
        let Some(format) = Compression::detect(self.payload) else {
            let magic = hex(&self.payload[..self.payload.len().min(8)]);
            return Err(HeaderError::Compression { magic }.into());
        };
        Ok(format.expand(self.payload, MAX_VMLINUX)?)
    }
}
