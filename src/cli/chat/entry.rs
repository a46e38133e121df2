//! Parses lines entered at the prompt.

/// A line at the prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// Nothing.
    Nothing,
    /// A message to the model.
    Message(&'a str),
    /// `/help`.
    Help,
    /// `/clear`.
    Clear,
    /// `/system`, with the new system message.
    System(Option<&'a str>),
    /// `/quit`.
    Quit,
    /// Something else behind a slash.
    Unknown(&'a str),
}

impl Entry<'_> {
    /// Reads a line. A command that takes no text is unknown with one, since it is then more
    /// likely a message.
    pub fn parse(line: &str) -> Entry<'_> {
        let line = line.trim();
        let Some(command) = line.strip_prefix('/') else {
            return if line.is_empty() { Entry::Nothing } else { Entry::Message(line) };
        };
        let (name, text) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, text.trim()) {
            _ if command.starts_with('/') => Entry::Message(command),
            ("help", "") => Entry::Help,
            ("clear", "") => Entry::Clear,
            ("quit", "") => Entry::Quit,
            ("system", "") => Entry::System(None),
            ("system", text) => Entry::System(Some(text)),
            _ => Entry::Unknown(line),
        }
    }
}

/// The answer to `/help`; `tokens_max` is the limit of an answer, if there is one.
pub fn help(tokens_max: Option<u64>) -> String {
    let limit = match tokens_max {
        Some(tokens) => format!("An answer ends after {tokens} tokens at the latest (--max-tokens)."),
        None => "An answer ends where the model ends it, or with the context. Start with --max-tokens N to limit it."
            .to_owned(),
    };
    format!(
        "/help           this list\n\
         /clear          forget the conversation, but not the system message\n\
         /system TEXT    set the system message; without TEXT, remove it\n\
         /quit, Ctrl-D   end\n\
         //TEXT          send /TEXT as a message\n\
         Ctrl-C          stop the answer, keeping what was said; at the prompt, clear the line\n\
         Up, Ctrl-R      earlier messages, and search in them\n\
         {limit}\n"
    )
}

/// The answer to a command that does not exist.
pub fn hint(line: &str) -> String {
    let name = line.split_whitespace().next().unwrap_or(line);
    let takes_no_text = ["/help", "/clear", "/quit"].contains(&name);
    let problem = if takes_no_text { format!("{name} takes no text") } else { format!("no command {name}") };
    format!("{problem}; /help lists the commands, and a second slash (/{name}) sends the line as a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_commands_are_commands_and_nothing_behind_one_slash_is_a_message() {
        for (line, entry) in [
            ("  ", Entry::Nothing),
            (" Hello /help ", Entry::Message("Hello /help")),
            ("/help", Entry::Help),
            (" /clear ", Entry::Clear),
            ("/quit", Entry::Quit),
            ("/system  Be brief. ", Entry::System(Some("Be brief."))),
            ("/system", Entry::System(None)),
            ("/typo", Entry::Unknown("/typo")),
            ("/", Entry::Unknown("/")),
            ("/etc/passwd is a file", Entry::Unknown("/etc/passwd is a file")),
            ("/clear the table", Entry::Unknown("/clear the table")),
            ("//clear the table", Entry::Message("/clear the table")),
            ("//", Entry::Message("/")),
        ] {
            assert_eq!(Entry::parse(line), entry, "{line:?}");
        }
    }

    #[test]
    fn the_hint_says_what_is_wrong_and_how_to_send_it() {
        assert!(hint("/typo x").starts_with("no command /typo; "));
        assert!(hint("/clear x").starts_with("/clear takes no text; "));
        assert!(hint("/typo x").contains("(//typo)"));
    }

    #[test]
    fn help_says_how_to_limit_an_answer() {
        assert!(help(None).contains("--max-tokens N"));
        assert!(help(Some(7)).contains("after 7 tokens"));
    }
}
