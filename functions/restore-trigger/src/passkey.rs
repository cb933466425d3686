//! The restore passkey: kept as an argon2 hash, compared in constant time.

use std::io::Read;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error, PasswordHasher, PasswordVerifier};
use argon2::{Argon2, Params};
use holdfast_shared::fault::Fault;
use holdfast_shared::secret::{self, Secret, SecretError};

/// Shorter ones are guessed sooner or later, five at a time.
const MIN_BYTES: usize = 12;
const MAX_BYTES: usize = 1_024;
/// What a stored hash may ask for: more would not fit beside a restore.
const MAX_MEMORY_KIB: u32 = 64 * 1_024;
const MAX_PASSES: u32 = 10;

/// Whether the passkey is the one whose hash the secret holds.
///
/// # Errors
/// `secret-unreadable` where the secret cannot be read or holds no usable hash: nothing is said about the passkey then.
pub async fn is_right(arn: &str, given: &Secret, aws: &aws_config::SdkConfig) -> Result<bool, Fault> {
    let stored = secret::read_text(arn, aws).await?;
    let (arn, given) = (arn.to_owned(), given.clone());
    // Tens of milliseconds of hard work: not on the thread that answers the network.
    let judged = tokio::task::spawn_blocking(move || {
        matches(stored.expose().trim(), &given).map_err(|problem| SecretError::Malformed { arn, problem })
    });
    let judged = judged.await.map_err(|error| Fault::from_error("internal", &error))?;
    Ok(judged?)
}

/// The comparison of the hashes themselves takes the same time wherever they differ.
fn matches(stored: &str, given: &Secret) -> Result<bool, String> {
    let hash = PasswordHash::new(stored)
        .map_err(|_| "it is not an argon2 hash in PHC form, as restore-trigger hash-passkey writes it".to_owned())?;
    let params = Params::try_from(&hash).map_err(|_| "its argon2 parameters are not valid".to_owned())?;
    if params.m_cost() > MAX_MEMORY_KIB || params.t_cost() > MAX_PASSES {
        return Err(format!("its argon2 parameters exceed {MAX_MEMORY_KIB} KiB or {MAX_PASSES} passes"));
    }
    if given.expose().len() > MAX_BYTES {
        return Ok(false);
    }
    match Argon2::default().verify_password(given.expose().as_bytes(), &hash) {
        Ok(()) => Ok(true),
        Err(Error::PasswordInvalid) => Ok(false),
        Err(_) => Err("its hash cannot be checked".to_owned()),
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    #[error("the passkey is shorter than {MIN_BYTES} bytes")]
    TooShort,
    #[error("the passkey is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("the passkey is not one line of text")]
    NotALine,
    #[error("the passkey cannot be hashed: {0}")]
    Failed(String),
}

/// What is stored in Secrets Manager for a passkey: argon2id with a fresh salt, in PHC form.
pub fn hash(passkey: &Secret) -> Result<String, HashError> {
    match passkey.expose().len() {
        0..MIN_BYTES => return Err(HashError::TooShort),
        MIN_BYTES..=MAX_BYTES => {}
        _ => return Err(HashError::TooLong),
    }
    let hashed = Argon2::default().hash_password(passkey.expose().as_bytes());
    hashed.map(|hash| hash.to_string()).map_err(|error| HashError::Failed(error.to_string()))
}

/// `restore-trigger hash-passkey`: the passkey is one line on standard input, its hash goes to standard output.
pub fn hash_standard_input() -> Result<String, HashError> {
    let mut text = String::new();
    std::io::stdin().take(MAX_BYTES as u64 + 2).read_to_string(&mut text).map_err(|_| HashError::NotALine)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains(['\n', '\r']) {
        return Err(HashError::NotALine);
    }
    hash(&Secret::new(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text)
    }

    #[test]
    fn only_the_passkey_itself_matches_its_hash() {
        let right = secret("correct horse battery");
        let stored = hash(&right).unwrap();
        assert!(stored.starts_with("$argon2id$v=19$"), "{stored}");
        assert_ne!(stored, hash(&right).unwrap(), "each hash has its own salt");
        assert_eq!(matches(&stored, &right), Ok(true));
        for wrong in
            ["", "correct horse batterz", "correct horse battery ", "Correct horse battery", &"x".repeat(5_000)]
        {
            assert_eq!(matches(&stored, &secret(wrong)), Ok(false), "{wrong}");
        }
    }

    #[test]
    fn a_hash_from_elsewhere_is_read_too() {
        // Made by the reference implementation's command line.
        let stored = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert_eq!(matches(stored, &secret("password")), Ok(true));
        assert_eq!(matches(stored, &secret("passwore")), Ok(false));
    }

    #[test]
    fn what_is_no_hash_allows_nothing() {
        for stored in [
            "",
            "correct horse battery",
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ",
            "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$2b$12$abcdefghijklmnopqrstuv",
        ] {
            let problem = matches(stored, &secret("correct horse battery"));
            assert!(problem.as_ref().is_ok_and(|right| !right) || problem.is_err(), "{stored}");
            assert!(!format!("{problem:?}").contains("horse"), "{problem:?}");
        }
    }

    #[test]
    fn short_passkeys_are_not_hashed() {
        assert_eq!(hash(&secret("elevenbytes")), Err(HashError::TooShort));
        assert_eq!(hash(&secret(&"x".repeat(1_025))), Err(HashError::TooLong));
    }
}
