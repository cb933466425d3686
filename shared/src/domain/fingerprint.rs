//! An order-independent digest of a table's rows, added up over pieces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

const SCHEME: &str = "xxh3-128-sum:";

/// The sum, modulo 2¹²⁸, of the XXH3-128 hashes of a table's rows, each the row's COPY text without its newline.
///
/// Addition makes it independent of row order and lets pieces be digested apart and added. It tells accidental
/// change (lost, doubled, altered rows) for certain purposes; it is no defence against someone who forges rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fingerprint(u128);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a fingerprint ({SCHEME} and 32 hexadecimal digits)")]
pub struct FingerprintError {
    pub text: String,
}

impl Fingerprint {
    fn add(&mut self, row_hash: u128) {
        self.0 = self.0.wrapping_add(row_hash);
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{:032x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix(SCHEME)
            .filter(|digits| digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
            .and_then(|digits| u128::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| FingerprintError { text: text.to_owned() })
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// What one pass over rows learns: how many, how much text, and their fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableDigest {
    pub rows: u64,
    /// COPY text, newlines included.
    pub bytes: u64,
    pub fingerprint: Fingerprint,
}

impl TableDigest {
    /// Takes in one whole row, without its newline.
    #[inline]
    pub fn add_row(&mut self, row: &[u8]) {
        self.rows += 1;
        self.bytes += row.len() as u64 + 1;
        self.fingerprint.add(xxh3_128(row));
    }

    /// Adds what another pass saw of the same table.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.fingerprint.add(other.fingerprint.0);
    }
}

/// The hash of one row that arrives in fragments, because it is too large to be held.
#[derive(Clone, Default)]
pub struct RowHasher {
    state: Xxh3,
    bytes: u64,
}

impl RowHasher {
    /// The next bytes of the row.
    pub fn update(&mut self, fragment: &[u8]) {
        self.state.update(fragment);
        self.bytes += fragment.len() as u64;
    }

    /// The hash of what has been seen.
    pub fn digest(&self) -> u128 {
        self.state.digest128()
    }

    /// Ends the row (all of it but its newline has been seen) and counts it.
    pub fn finish(self, digest: &mut TableDigest) {
        digest.rows += 1;
        digest.bytes += self.bytes + 1;
        digest.fingerprint.add(self.state.digest128());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(rows: &[Vec<u8>]) -> TableDigest {
        let mut digest = TableDigest::default();
        rows.iter().for_each(|row| digest.add_row(row));
        digest
    }

    #[test]
    fn the_scheme_is_fixed() {
        // Fingerprints are compared across releases: these digits may never change.
        let digest = digest(&[b"1\tcaf\xc3\xa9".to_vec(), b"2\t\\N".to_vec()]);
        assert_eq!(digest.fingerprint.to_string(), "xxh3-128-sum:a49ed9c64be37a22d8574f3efc63996f");
        assert_eq!((digest.rows, digest.bytes), (2, 13));
    }

    #[test]
    fn a_doubled_row_counts_twice() {
        let row = b"1\tx".to_vec();
        assert_ne!(digest(std::slice::from_ref(&row)).fingerprint, digest(&[row.clone(), row]).fingerprint);
        assert_eq!(digest(&[]).fingerprint, Fingerprint::default());
    }

    proptest! {
        #[test]
        fn order_and_pieces_do_not_matter(mut rows in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..40), cut in 0usize..40) {
            let whole = digest(&rows);
            rows.reverse();
            let (a, b) = rows.split_at(cut.min(rows.len()));
            let mut pieces = digest(a);
            pieces.merge(&digest(b));
            prop_assert_eq!(pieces, whole);
        }

        #[test]
        fn fragments_hash_as_the_whole_row(row in proptest::collection::vec(any::<u8>(), 0..2000), size in 1usize..700) {
            let mut hasher = RowHasher::default();
            row.chunks(size).for_each(|fragment| hasher.update(fragment));
            let mut fragmented = TableDigest::default();
            hasher.finish(&mut fragmented);
            prop_assert_eq!(fragmented, digest(&[row]));
        }

        #[test]
        fn parsing_is_the_inverse_of_rendering(bits in any::<u128>()) {
            prop_assert_eq!(Fingerprint(bits).to_string().parse::<Fingerprint>().unwrap(), Fingerprint(bits));
        }
    }
}
