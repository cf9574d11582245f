//! What a client of PostgreSQL sends, read as far as needed to say where something is committed: after `COMMIT`, and after
//! the `Sync` that ends a writing statement outside any transaction. Only the framing and the first words are looked at.

use std::collections::HashMap;

/// The codes of what may come before the startup message and is not one.
const REQUESTS: [u32; 3] = [80_877_102, 80_877_103, 80_877_104];
/// How much of a message is kept: the statements of this product are shorter.
const KEPT: usize = 32 * 1024;

/// One connection's client side.
#[derive(Debug, Default)]
pub(super) struct Frontend {
    greeted: bool,
    head: Vec<u8>,
    body: Vec<u8>,
    left: usize,
    /// Whether each prepared statement writes, by its name.
    writing: HashMap<Vec<u8>, bool>,
    bound_writes: bool,
    in_transaction: bool,
}

impl Frontend {
    /// Reads on; answers the offsets in `bytes` right after which something is committed.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Vec<usize> {
        let mut commits = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let head = if self.greeted { 5 } else { 4 };
            if self.head.len() < head {
                self.head.push(bytes[at]);
                at += 1;
                if self.head.len() == head {
                    let length = &self.head[head - 4..];
                    let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
                    self.left = length.saturating_sub(4);
                }
            } else {
                let part = &bytes[at..bytes.len().min(at + self.left)];
                self.body.extend_from_slice(&part[..part.len().min(KEPT.saturating_sub(self.body.len()))]);
                self.left -= part.len();
                at += part.len();
            }
            if self.head.len() == head && self.left == 0 {
                if self.ends_in_commit() {
                    commits.push(at);
                }
                self.head.clear();
                self.body.clear();
            }
        }
        commits
    }

    fn ends_in_commit(&mut self) -> bool {
        if !self.greeted {
            let code = self.body.iter().take(4).fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
            self.greeted = !REQUESTS.contains(&code);
            return false;
        }
        let mut words = self.body.split(|byte| *byte == 0);
        match self.head[0] {
            b'Q' => {
                let text = words.next().unwrap_or_default();
                let was_open = self.in_transaction;
                let verb = first_word(text);
                self.in_transaction = match verb.as_str() {
                    "BEGIN" | "START" => true,
                    "COMMIT" | "END" | "ROLLBACK" => false,
                    _ => was_open,
                };
                matches!(verb.as_str(), "COMMIT" | "END") || !was_open && writes(text)
            }
            b'P' => {
                let (name, text) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                self.writing.insert(name.to_vec(), writes(text));
                false
            }
            b'B' => {
                let name = words.nth(1).unwrap_or_default();
                self.bound_writes |= self.writing.get(name).copied().unwrap_or(false);
                false
            }
            b'S' => std::mem::take(&mut self.bound_writes) && !self.in_transaction,
            _ => false,
        }
    }
}

fn first_word(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split_whitespace().next().unwrap_or_default().to_ascii_uppercase()
}

fn writes(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).to_ascii_uppercase();
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic() && c != '_');
    words.any(|word| matches!(word, "INSERT" | "UPDATE" | "DELETE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], length.as_slice(), body].concat()
    }

    fn greeting() -> Vec<u8> {
        let ssl = [8_u32.to_be_bytes(), 80_877_103_u32.to_be_bytes()].concat();
        let startup = [12_u32.to_be_bytes(), 196_608_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat();
        [ssl, startup].concat()
    }

    fn statement(text: &str) -> Vec<u8> {
        let parse = message(b'P', format!("s1\0{text}\0\0\0").as_bytes());
        [parse, message(b'B', b"\0s1\0\0\0\0\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat()
    }

    #[test]
    fn a_commit_is_seen_however_the_bytes_are_cut() {
        let stream = [
            greeting(),
            message(b'Q', b"BEGIN\0"),
            statement("-- save_jobs\nUPDATE job_state SET version = 2"),
            message(b'Q', b"COMMIT\0"),
            statement("-- read_jobs\nSELECT updated FROM jobs"),
            message(b'Q', b"BEGIN\0"),
            statement("DELETE FROM waiting"),
            message(b'Q', b"ROLLBACK\0"),
            statement("WITH w AS (INSERT INTO feed VALUES (1) RETURNING 1) SELECT 1"),
        ]
        .concat();
        let end_of_commit = stream.windows(7).position(|part| part == b"COMMIT\0").unwrap() + 7;
        for size in [1, 2, 3, 7, stream.len()] {
            let mut frontend = Frontend::default();
            let parts = stream.chunks(size).enumerate();
            let found: Vec<usize> = parts
                .flat_map(|(n, part)| frontend.read(part).into_iter().map(move |at| n * size + at))
                .collect();
            assert_eq!(found, [end_of_commit, stream.len()], "in pieces of {size}");
        }
    }
}
