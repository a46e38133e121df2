//! Tags of files on the hub: names of their contents, and hashes for most.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

const SHA1_DIGITS: usize = 40;
const SHA256_DIGITS: usize = 64;
/// Longest tag, in bytes: it becomes a file's name.
const TAG_BYTES_MAX: usize = 200;

/// The tag of one file's content, usable as a file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag(String);

/// Which hash a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// SHA-256 of the content, for files in large file storage: all but small weights.
    Sha256,
    /// Git's hash of the content, for other files.
    Git,
    /// None that is known, as mirrors may send.
    Opaque,
}

/// Hashes a content as its tag does.
pub(super) enum Hasher {
    /// The tag is a hash.
    Hash(Box<Context>),
    /// It is not.
    Nothing,
}

impl Tag {
    /// The tag in the value of an ETag header; `None` for what cannot be a file's name.
    pub(super) fn parse(header: &str) -> Option<Tag> {
        let text = header.trim();
        let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = !text.is_empty() && text.len() <= TAG_BYTES_MAX && !text.starts_with('.');
        (fits && text.bytes().all(allowed)).then(|| Tag(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn kind(&self) -> Kind {
        match self.0.len() {
            _ if !self.0.bytes().all(|byte| byte.is_ascii_hexdigit()) => Kind::Opaque,
            SHA256_DIGITS => Kind::Sha256,
            SHA1_DIGITS => Kind::Git,
            _ => Kind::Opaque,
        }
    }

    /// A hasher for a content of `bytes` bytes.
    pub(super) fn hasher(&self, bytes: u64) -> Hasher {
        match self.kind() {
            Kind::Sha256 => Hasher::Hash(Box::new(Context::new(&SHA256))),
            Kind::Git => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {bytes}\0").as_bytes());
                Hasher::Hash(Box::new(context))
            }
            Kind::Opaque => Hasher::Nothing,
        }
    }
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        if let Hasher::Hash(context) = self {
            context.update(bytes);
        }
    }

    /// The hash in hexadecimal digits, if the tag is one.
    pub(super) fn finish(self) -> Option<String> {
        match self {
            Hasher::Hash(context) => {
                Some(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
            }
            Hasher::Nothing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Tag {
        Tag::parse(text).expect("a tag")
    }

    #[test]
    fn a_tag_is_what_the_header_quotes_and_can_be_a_files_name() {
        for header in ["\"abc-1\"", "W/\"abc-1\"", "abc-1", " \"abc-1\" "] {
            assert_eq!(tag(header).as_str(), "abc-1");
        }
        for header in ["", "\"\"", "\"../x\"", "\"a/b\"", "\".a\"", "\"a b\"", &"a".repeat(201)] {
            assert_eq!(Tag::parse(header), None, "{header}");
        }
    }

    #[test]
    fn a_tag_of_large_file_storage_is_the_sha256_and_of_git_the_hash_of_the_blob() {
        let hash = |tag: &Tag, bytes: &[u8]| {
            let mut hasher = tag.hasher(bytes.len() as u64);
            bytes.chunks(2).for_each(|part| hasher.update(part));
            hasher.finish()
        };
        // `printf hello | sha256sum`, `printf hello | git hash-object --stdin`
        let large = tag("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        let git = tag("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0");
        assert_eq!((large.kind(), git.kind()), (Kind::Sha256, Kind::Git));
        assert_eq!(hash(&large, b"hello").as_deref(), Some(large.as_str()));
        assert_eq!(hash(&git, b"hello").as_deref(), Some(git.as_str()));
        assert_eq!(tag("5f3c-1700000000").kind(), Kind::Opaque);
        assert_eq!(hash(&tag("5f3c-1700000000"), b"hello"), None);
    }
}
