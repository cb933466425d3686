//! Checksums of parts and whole objects, as S3 takes them (Amazon S3 User Guide, "Checking object integrity").

use aws_sdk_s3::types::ChecksumAlgorithm;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use crate::config::ObjectChecksum;

/// A CRC and the number of bytes it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartChecksum {
    value: u64,
    len: u64,
}

impl ObjectChecksum {
    fn algorithm(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::None => None,
        }
    }

    /// `None` where the store has no object checksums; likewise in what follows.
    pub fn sdk(self) -> Option<ChecksumAlgorithm> {
        match self {
            Self::Crc64Nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Self::Crc32 => Some(ChecksumAlgorithm::Crc32),
            Self::None => None,
        }
    }

    /// Of one part, in however many pieces it lies.
    pub fn of(self, chunks: &[Bytes]) -> Option<PartChecksum> {
        let mut digest = Digest::new(self.algorithm()?);
        chunks.iter().for_each(|chunk| digest.update(chunk));
        Some(PartChecksum { value: digest.finalize(), len: chunks.iter().map(|chunk| chunk.len() as u64).sum() })
    }

    /// The checksum of the parts one after the other.
    pub fn combine(self, parts: impl Iterator<Item = PartChecksum>) -> Option<PartChecksum> {
        let algorithm = self.algorithm()?;
        parts.reduce(|before, part| PartChecksum {
            value: crc_fast::checksum_combine(algorithm, before.value, part.value, part.len),
            len: before.len + part.len,
        })
    }

    /// Base64 of the big-endian bytes, as in the `x-amz-checksum-…` headers.
    pub fn header(self, checksum: PartChecksum) -> String {
        let bytes = checksum.value.to_be_bytes();
        match self {
            Self::Crc32 => STANDARD.encode(&bytes[4..]),
            _ => STANDARD.encode(bytes),
        }
    }

    /// `algorithm:hexadecimal`, as in the manifest.
    pub fn label(self, checksum: PartChecksum) -> String {
        match self {
            Self::Crc64Nvme => format!("crc64nvme:{:016x}", checksum.value),
            Self::Crc32 => format!("crc32:{:08x}", checksum.value),
            Self::None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // CRC catalogue check values for "123456789".
        let chunk = [Bytes::from_static(b"123456789")];
        assert_eq!(
            ObjectChecksum::Crc64Nvme.label(ObjectChecksum::Crc64Nvme.of(&chunk).unwrap()),
            "crc64nvme:ae8b14860a799888"
        );
        assert_eq!(ObjectChecksum::Crc32.label(ObjectChecksum::Crc32.of(&chunk).unwrap()), "crc32:cbf43926");
        assert_eq!(ObjectChecksum::Crc32.header(ObjectChecksum::Crc32.of(&chunk).unwrap()), "y/Q5Jg==");
        assert!(ObjectChecksum::None.of(&chunk).is_none());
    }

    #[test]
    fn parts_combine_to_the_whole() {
        for algorithm in [ObjectChecksum::Crc64Nvme, ObjectChecksum::Crc32] {
            let chunks: Vec<Bytes> = (0u8..20).map(|i| Bytes::from(vec![i; usize::from(i) * 1000])).collect();
            let parts = chunks.iter().filter_map(|chunk| algorithm.of(std::slice::from_ref(chunk)));
            assert_eq!(algorithm.combine(parts), algorithm.of(&chunks));
        }
    }
}
