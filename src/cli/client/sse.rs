//! Incremental parser of server-sent events.

/// Longest accepted event, in bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Why an event cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// The event exceeds [`EVENT_BYTES_MAX`].
    #[error("an event is longer than the limit of {EVENT_BYTES_MAX} bytes")]
    TooLong,
    /// The event is not UTF-8.
    #[error("an event is not UTF-8")]
    NotText,
}

/// Parses a byte stream, split anywhere, into the data of events. Lines end with LF, CR or
/// CR LF; comments and fields other than `data` are skipped.
#[derive(Debug, Default)]
pub struct SseParser {
    line: Vec<u8>,
    /// Data lines of the open event, each terminated by LF.
    data: Vec<u8>,
    /// Whether the last byte was a CR, so that a following LF belongs to the same line end.
    after_cr: bool,
}

impl SseParser {
    /// Parses more bytes; appends the data of each completed event.
    ///
    /// # Errors
    /// [`SseError`]; the parser must not be used afterwards.
    pub fn push(&mut self, bytes: &[u8], events: &mut impl Extend<String>) -> Result<(), SseError> {
        for &byte in bytes {
            let continues_line_end = std::mem::take(&mut self.after_cr) && byte == b'\n';
            match byte {
                _ if continues_line_end => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    if let Some(event) = self.end_line()? {
                        events.extend([event]);
                    }
                }
                _ => {
                    self.line.push(byte);
                    if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                        return Err(SseError::TooLong);
                    }
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<String>, SseError> {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            if let Some(value) = data_of(&line) {
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            return Ok(None);
        }
        if self.data.pop().is_none() {
            return Ok(None);
        }
        let data = std::mem::take(&mut self.data);
        String::from_utf8(data).map(Some).map_err(|_| SseError::NotText)
    }
}

/// The value of a `data` line, without one space after the colon.
fn data_of(line: &[u8]) -> Option<&[u8]> {
    match line.strip_prefix(b"data")? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut events).expect("valid");
        }
        events
    }

    #[test]
    fn an_event_ends_at_an_empty_line() {
        assert_eq!(parse(&[b"data: a\n\ndata:b\n\ndata: open"]), ["a", "b"]);
    }

    #[test]
    fn data_lines_of_one_event_are_joined() {
        assert_eq!(parse(&[b"data: a\ndata:\ndata:  b\n\n"]), ["a\n\n b"]);
    }

    #[test]
    fn comments_other_fields_and_empty_events_are_skipped() {
        assert_eq!(parse(&[b": ping\n\nevent: x\nid: 1\ndatum: 2\n\ndata\n\n"]), [""]);
    }

    #[test]
    fn all_line_ends_are_the_same() {
        for end in ["\n", "\r", "\r\n"] {
            let text = format!("data: a{end}{end}data: b{end}{end}");
            assert_eq!(parse(&[text.as_bytes()]), ["a", "b"], "{end:?}");
        }
    }

    #[test]
    fn an_event_that_never_ends_is_refused() {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        let long = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert_eq!(parser.push(&long, &mut events), Err(SseError::TooLong));
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        let mut events = Vec::new();
        assert_eq!(SseParser::default().push(b"data: \xff\n\n", &mut events), Err(SseError::NotText));
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_where_the_bytes_break(
            datas in prop::collection::vec("[a-zé: ]{0,12}", 0..6),
            end in prop::sample::select(vec!["\n", "\r", "\r\n"]),
            breaks in prop::collection::vec(1usize..9, 0..80),
        ) {
            let text: String = datas.iter().map(|data| format!("data: {data}{end}: note{end}{end}")).collect();
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for size in breaks {
                let (piece, later) = rest.split_at(size.min(rest.len()));
                pieces.push(piece);
                rest = later;
            }
            pieces.push(rest);
            prop_assert_eq!(parse(&pieces), datas);
        }
    }
}
