//! How an archive is compressed: algorithm and level, as settings and manifests say it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::archive::toc::{ArchiveVersion, HeaderCompression};

/// Algorithm and level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Compression {
    None,
    Gzip { level: u32 },
    Zstd { level: i32 },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a compression (zstd:1 to zstd:19, gzip:1 to gzip:9, or none)")]
pub struct CompressionError {
    pub text: String,
}

impl Compression {
    /// Chosen by measurement: docs/performance.md.
    pub const DEFAULT_ZSTD: Self = Self::Zstd { level: 1 };
    pub const DEFAULT_GZIP: Self = Self::Gzip { level: 1 };

    /// The default for a server: zstd from 16 on, whose `pg_restore` reads it; gzip before.
    pub fn default_for(server_major: u32, archive: ArchiveVersion) -> Self {
        if server_major >= 16 && Self::DEFAULT_ZSTD.fits(archive) { Self::DEFAULT_ZSTD } else { Self::DEFAULT_GZIP }
    }

    /// Whether an archive of this version can say that it is compressed so.
    pub fn fits(self, archive: ArchiveVersion) -> bool {
        !matches!(self, Self::Zstd { .. }) || archive >= ArchiveVersion::V1_15
    }

    pub fn header(self) -> HeaderCompression {
        match self {
            Self::None => HeaderCompression::None,
            Self::Gzip { .. } => HeaderCompression::Gzip,
            Self::Zstd { .. } => HeaderCompression::Zstd,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip { level } => write!(f, "gzip:{level}"),
            Self::Zstd { level } => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let level = level.map(str::parse::<u32>).transpose().ok();
        match (algorithm, level) {
            ("none", Some(None)) => Ok(Self::None),
            ("gzip", Some(None)) => Ok(Self::DEFAULT_GZIP),
            ("zstd", Some(None)) => Ok(Self::DEFAULT_ZSTD),
            ("gzip", Some(Some(level @ 1..=9))) => Ok(Self::Gzip { level }),
            ("zstd", Some(Some(level @ 1..=19))) => Ok(Self::Zstd { level: level as i32 }),
            _ => Err(CompressionError { text: text.to_owned() }),
        }
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> Self {
        compression.to_string()
    }
}

impl TryFrom<String> for Compression {
    type Error = CompressionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
