//! Where a JSON value ends in streamed text.

/// Finds the end of one JSON value, character by character. It tracks strings and brackets only:
/// whether the value is valid JSON is not checked.
#[derive(Clone, Debug, Default)]
pub struct JsonValue {
    /// Brackets that are open.
    depth: u32,
    string: Option<StringState>,
    /// Whether the value is a number, `true`, `false` or `null`.
    bare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringState {
    Open,
    /// After a backslash.
    Escaped,
}

/// What a character is to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Part of it, and more follows.
    Inside,
    /// Its last character.
    Last,
    /// Not part of it: it ended before.
    Beyond,
    /// No JSON.
    Invalid,
}

impl JsonValue {
    /// Takes the next character; the first must not be whitespace. Must not be called after any
    /// other role than [`Role::Inside`].
    pub fn take(&mut self, character: char) -> Role {
        if let Some(state) = self.string {
            return self.take_in_string(state, character);
        }
        match character {
            '"' if !self.bare => {
                self.string = Some(StringState::Open);
                Role::Inside
            }
            '{' | '[' if !self.bare => {
                self.depth += 1;
                Role::Inside
            }
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                if self.depth == 0 { Role::Last } else { Role::Inside }
            }
            _ if self.depth > 0 => match character {
                ',' | ':' | '+' | '-' | '.' => Role::Inside,
                _ if character.is_ascii_alphanumeric() || character.is_ascii_whitespace() => Role::Inside,
                _ => Role::Invalid,
            },
            _ => self.take_bare(character),
        }
    }

    fn take_in_string(&mut self, state: StringState, character: char) -> Role {
        self.string = match (state, character) {
            (StringState::Escaped, _) => Some(StringState::Open),
            (StringState::Open, '\\') => Some(StringState::Escaped),
            (StringState::Open, '"') => None,
            (StringState::Open, _) => Some(StringState::Open),
        };
        if self.string.is_none() && self.depth == 0 { Role::Last } else { Role::Inside }
    }

    fn take_bare(&mut self, character: char) -> Role {
        if character.is_ascii_alphanumeric() || ['+', '-', '.'].contains(&character) {
            self.bare = true;
            return Role::Inside;
        }
        if self.bare { Role::Beyond } else { Role::Invalid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value at the beginning of a text, and the role of the character that decided its end.
    fn value(text: &str) -> (&str, Role) {
        let mut value = JsonValue::default();
        for (at, character) in text.char_indices() {
            match value.take(character) {
                Role::Inside => {}
                Role::Last => return (&text[..at + character.len_utf8()], Role::Last),
                end => return (&text[..at], end),
            }
        }
        (text, Role::Inside)
    }

    #[test]
    fn a_value_ends_where_its_brackets_or_quotes_close() {
        for (text, expected) in [
            ("{} {}", "{}"),
            ("{\"a\": [1, {\"b\": null}]}, 2", "{\"a\": [1, {\"b\": null}]}"),
            ("{\"}\": \"]\\\"}\\\\\"}}", "{\"}\": \"]\\\"}\\\\\"}"),
            ("\"a\\\"é\" ", "\"a\\\"é\""),
            ("[[], [-1.5e+3]]]", "[[], [-1.5e+3]]"),
        ] {
            assert_eq!(value(text), (expected, Role::Last), "{text}");
        }
    }

    #[test]
    fn a_number_or_word_ends_before_the_next_character() {
        for (text, expected) in [("-1.5e3,", "-1.5e3"), ("null}", "null"), ("true \n", "true"), ("1\"", "1")]
        {
            assert_eq!(value(text), (expected, Role::Beyond), "{text}");
        }
    }

    #[test]
    fn what_no_json_has_outside_of_strings_is_invalid() {
        for (text, expected) in [("<x>", ""), (",", ""), ("}", ""), ("{\"a\": 1</", "{\"a\": 1")] {
            assert_eq!(value(text), (expected, Role::Invalid), "{text}");
        }
    }

    #[test]
    fn an_unfinished_value_is_open() {
        for text in ["{\"a\": \"}", "[1, 2", "\"\\\"", "12"] {
            assert_eq!(value(text), (text, Role::Inside), "{text}");
        }
    }
}
