//! Frames with good checksums, so that what is behind the checksums is reached.

/// The layout's magic and version (logging-channel, "A frame"). Were they others, the seeds would find out: they decode.
const BEGIN: [u8; 3] = [b'F', b'T', logging_channel::codec::FRAME_VERSION];

/// A frame of kind `kind` around `payload`, which is cut to the longest that is allowed.
#[must_use]
pub fn sealed(kind: u8, generation: u64, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(logging_channel::codec::MAX_PAYLOAD)];
    let mut frame = BEGIN.to_vec();
    frame.extend([kind, 0]);
    frame.extend(&payload.len().to_le_bytes()[..3]);
    frame.extend(generation.to_le_bytes());
    frame.extend(crc32c::crc32c(&frame).to_le_bytes());
    let whole = crc32c::crc32c_append(crc32c::crc32c(&frame), payload);
    frame.extend(whole.to_le_bytes());
    frame.extend(payload);
    frame
}
