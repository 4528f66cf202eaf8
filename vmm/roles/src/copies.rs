//! What a backup does with its copies of the private disks (the paper, section 4.1: disks that are not shared).
//!
//! The backup's guest asks of its disks what the primary's asks of its own, in the same order: that the backup carries out
//! on its copies, one request after the other, when the replayed guest makes it. Any order that the primary's plan lets
//! requests run in gives the same content as that one, and reads bring the same. So nothing is held back on the primary, and
//! nothing is known to be missing on the backup: at its horizon its copies are those of its guest.

use ftvm_schema::request::DiskRequest;

/// Why a disk of this host does not give or take what it must; a sentence for the user.
pub type DiskError = Box<dyn std::error::Error + Send + Sync>;

/// This host's copies of the private disks. An error makes this host useless as a backup (PROTOCOL 16).
pub trait DiskCopies: std::fmt::Debug {
    /// Puts extents of a disk in their place, ahead of the state record: `content` as in
    /// [`Message::Blocks`](logging_channel::message::Message::Blocks).
    ///
    /// # Errors
    /// If they are not the disk's, or the disk cannot be written.
    fn put(&mut self, disk: u8, numbers: &[u64], content: &[u8]) -> Result<(), DiskError>;

    /// Makes stable what was put.
    ///
    /// # Errors
    /// If a disk cannot be flushed.
    fn flush(&mut self) -> Result<(), DiskError>;

    /// The state is loaded to which the copies belong.
    ///
    /// # Errors
    /// If that cannot be noted.
    fn level(&mut self) -> Result<(), DiskError>;

    /// The guest makes a request: a write or flush is carried out, and so is a read whose result the log leaves out.
    ///
    /// # Errors
    /// If the disk fails.
    fn request(&mut self, request: &DiskRequest) -> Result<(), DiskError>;

    /// What a read has brought, if it was carried out; it is forgotten.
    fn brought(&mut self, disk: u8, id: u64) -> Option<Vec<u8>>;

    /// The guest's recorded end has been replayed.
    ///
    /// # Errors
    /// If a disk cannot be flushed, or the end cannot be noted.
    fn ended(&mut self) -> Result<(), DiskError>;
}

/// Of one who replays a log and has no disks, or whose guest has none that are private.
#[derive(Clone, Copy, Debug)]
pub struct NoCopies;

#[derive(Debug, thiserror::Error)]
#[error("blocks of disk {disk} came, which is no private disk here")]
struct NotPrivateHere {
    disk: u8,
}

impl DiskCopies for NoCopies {
    fn put(&mut self, disk: u8, _numbers: &[u64], _content: &[u8]) -> Result<(), DiskError> {
        Err(Box::new(NotPrivateHere { disk }))
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn level(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn request(&mut self, _request: &DiskRequest) -> Result<(), DiskError> {
        Ok(())
    }

    fn brought(&mut self, _disk: u8, _id: u64) -> Option<Vec<u8>> {
        None
    }

    fn ended(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}
