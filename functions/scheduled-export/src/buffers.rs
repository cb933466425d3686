//! Part buffers that are used again: a fresh one costs the kernel a page fault for each of its pages.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// Hands out buffers of one capacity, and takes them back when their part has been stored.
pub struct Buffers {
    spare: Mutex<Vec<Vec<u8>>>,
    capacity: usize,
    /// How many may lie idle.
    kept: usize,
}

/// A buffer's content on its way to the store.
struct Sealed {
    buffer: Vec<u8>,
    home: Weak<Buffers>,
}

impl Buffers {
    pub fn new(capacity: usize, kept: usize) -> Arc<Self> {
        Arc::new(Self { spare: Mutex::default(), capacity, kept })
    }

    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Vec::with_capacity(self.capacity))
    }

    /// The buffer's content; the buffer comes back when the last reference to it is gone.
    pub fn seal(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Sealed { buffer, home: Arc::downgrade(self) })
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else { return };
        let mut buffer = std::mem::take(&mut self.buffer);
        // One that a giant row or a longer part made grow is not kept.
        if (home.capacity..=2 * home.capacity).contains(&buffer.capacity()) {
            buffer.clear();
            let mut spare = home.spare.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < home.kept {
                spare.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_reference_goes() {
        let buffers = Buffers::new(1024, 1);
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"part");
        let sealed = buffers.seal(buffer);
        let retry = sealed.clone();
        drop(sealed);
        assert_eq!(buffers.spare.lock().unwrap().len(), 0);
        assert_eq!(&retry[..], b"part");
        drop(retry);
        assert_eq!(buffers.spare.lock().unwrap().len(), 1);
        assert!(buffers.take().is_empty());
        drop(buffers.seal(Vec::with_capacity(4096)));
        assert_eq!(buffers.spare.lock().unwrap().len(), 0, "a larger one is not kept");
    }
}
