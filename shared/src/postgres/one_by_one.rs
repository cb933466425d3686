//! Statements of others, each of which the server takes for one and no more: by the extended query protocol, where text
//! that holds two statements is an error.

use tokio::io::AsyncWriteExt;

use crate::postgres::copy::{CopyError, RawSession};

impl RawSession {
    /// Runs statements in one transaction, without waiting for each one's answer; the number of rows that `INSERT`s among
    /// them inserted. The answers have to fit the connection's buffers: a thousand statements or so.
    ///
    /// # Errors
    /// [`CopyError::Server`] with the first error; nothing of the statements stays.
    pub async fn execute_each(&mut self, statements: &[impl AsRef<[u8]>]) -> Result<u64, CopyError> {
        let mut message = Vec::new();
        for statement in statements {
            let statement = statement.as_ref();
            if statement.contains(&0) {
                return Err(CopyError::Protocol { what: "a statement with a zero byte" });
            }
            // Parse: no name, no types of parameters. Bind: no names, no formats, no parameters. Execute: all rows.
            put(&mut message, b'P', &[b"\0", statement, b"\0\0\0"]);
            put(&mut message, b'B', &[b"\0\0", &[0; 6]]);
            put(&mut message, b'E', &[b"\0", &[0; 4]]);
        }
        put(&mut message, b'S', &[]);
        self.stream.write_all(&message).await.map_err(CopyError::Io)?;
        self.stream.flush().await.map_err(CopyError::Io)?;
        let mut answer = self.answer();
        loop {
            while answer.next_item()?.is_some() {}
            if !answer.fill().await? {
                return Ok(answer.inserted());
            }
        }
    }
}

fn put(message: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    message.push(kind);
    message.extend_from_slice(&(len as u32 + 4).to_be_bytes());
    parts.iter().for_each(|part| message.extend_from_slice(part));
}
