//! Reading a batch line by line.

use std::io::{BufRead, Read};

use super::request::{Form, Request, parse};

/// Longest line, in bytes: the largest body limit that a daemon can be configured with.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// A request line of the input.
pub struct Item {
    /// Line number from 1.
    pub line: u64,
    /// Offset of its end in the input, in bytes.
    pub end_byte: u64,
    /// The form of its result.
    pub form: Form,
    /// The request, or why the line is invalid.
    pub request: Result<Request, String>,
}

/// Reads the input line by line, skipping empty lines. A read error or an overlong line is the
/// last item.
pub struct Lines<R> {
    reader: R,
    line: u64,
    end_byte: u64,
    ended: bool,
    /// The form of a line that does not show its own: that of the line before.
    form: Form,
}

impl<R: BufRead> Lines<R> {
    /// Creates an iterator over the lines of `reader`.
    pub fn new(reader: R) -> Lines<R> {
        Lines { reader, line: 0, end_byte: 0, ended: false, form: Form::Line }
    }

    /// Reads the next line; `None` at the end of the input.
    fn read(&mut self) -> Option<Result<String, String>> {
        let mut bytes = Vec::new();
        self.line += 1;
        match self.reader.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(length) => self.end_byte += length as u64,
            Err(error) => {
                self.ended = true;
                return Some(Err(format!("reading the input failed: {error}")));
            }
        }
        if bytes.len() as u64 > LINE_BYTES_MAX {
            self.ended = true;
            return Some(Err(format!(
                "the line is longer than the limit of {LINE_BYTES_MAX} bytes; the rest of the input is skipped"
            )));
        }
        Some(String::from_utf8(bytes).map_err(|_| "the line is not UTF-8".to_owned()))
    }

    fn item(&mut self, text: Result<String, String>) -> Item {
        let (form, request) = match text.and_then(|text| parse(&text)) {
            Err(problem) => (self.form.of_an_unknown_request(), Err(problem)),
            Ok((form, request)) => (form, request),
        };
        self.form = form.clone();
        Item { line: self.line, end_byte: self.end_byte, form, request }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        while !self.ended {
            let text = self.read()?;
            if !text.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                return Some(self.item(text));
            }
        }
        None
    }
}
