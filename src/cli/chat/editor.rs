//! The prompt on a terminal, with line editing and history.

use std::fs::OpenOptions;
use std::io::{self, Write, stdin, stdout};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use tokio::task::JoinHandle;

use super::dialogue::{Input, Prompt};
use super::input_failed;
use crate::cli::error::CliError;
use crate::cli::{colour, notice};

const PROMPT: &str = "> ";
/// Messages that the history keeps.
const HISTORY_LINES_MAX: usize = 1000;
/// Longest message that it keeps, in bytes.
const HISTORY_LINE_BYTES_MAX: usize = 4096;
/// Only its owner may look into the history and its directory.
const OWNER_ONLY: u32 = 0o700;
const OWNER_ONLY_FILE: u32 = 0o600;
/// Ends the bracketed paste mode of the line editor.
const BRACKETED_PASTE_OFF: &str = "\x1b[?2004l";

/// The prompt on standard input and output, which are terminals.
pub struct Terminal {
    /// Not there while it reads.
    reader: Option<Reader>,
    /// The line that is being read, on a thread of its own.
    reading: Option<JoinHandle<(Reader, Result<Input, CliError>)>>,
    /// The terminal's settings, to be restored if reading is abandoned.
    settings: Option<Termios>,
}

impl Terminal {
    /// Prepares the prompt; `history` is the file that keeps the lines.
    ///
    /// # Errors
    /// [`CliError::Failed`] if the terminal cannot be used.
    pub fn open(history: Option<PathBuf>) -> Result<Terminal, CliError> {
        let settings = tcgetattr(stdin()).ok();
        Ok(Terminal { reader: Some(Reader::open(history)?), reading: None, settings })
    }
}

impl Prompt for Terminal {
    async fn line(&mut self) -> Result<Input, CliError> {
        if let Some(mut reader) = self.reader.take() {
            self.reading = Some(tokio::task::spawn_blocking(move || {
                let input = reader.read();
                (reader, input)
            }));
        }
        let reading = self.reading.as_mut().expect("either the reader is there or it reads");
        let (reader, input) = reading.await.map_err(|panic| CliError::Failed(panic.to_string()))?;
        (self.reader, self.reading) = (Some(reader), None);
        input
    }

    fn interrupted(&mut self) {
        // The line editor takes Ctrl-C as a key. Without it the terminal has discarded the line.
        if colour::is_dumb() {
            show(&format!("\n{PROMPT}"));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let Some(settings) = self.settings.as_ref().filter(|_| self.reading.is_some()) else { return };
        // nothing can be done about a terminal that is gone
        let _ = tcsetattr(stdin(), OptionalActions::Now, settings);
        if !colour::is_dumb() {
            show(&format!("{BRACKETED_PASTE_OFF}\n"));
        }
    }
}

/// Writes to the terminal, which may be gone.
fn show(text: &str) {
    let _ = stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush());
}

/// Reads lines and remembers them.
struct Reader {
    editor: Editor<(), FileHistory>,
    /// The history's file, as long as it can be used.
    history: Option<PathBuf>,
}

impl Reader {
    fn open(history: Option<PathBuf>) -> Result<Reader, CliError> {
        let failed = |error: ReadlineError| CliError::Failed(format!("cannot use the terminal: {error}"));
        let config = Config::builder().max_history_size(HISTORY_LINES_MAX).map_err(failed)?;
        let config = config.history_ignore_dups(true).map_err(failed)?.history_ignore_space(true).build();
        let mut reader = Reader { editor: Editor::with_config(config).map_err(failed)?, history };
        if let Some(path) = reader.history.clone() {
            let loaded = make_parent(&path).and_then(|()| reader.load(&path));
            reader.check(loaded.err());
        }
        Ok(reader)
    }

    fn load(&mut self, path: &Path) -> io::Result<()> {
        match self.editor.load_history(path) {
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(into_io),
        }
    }

    fn read(&mut self) -> Result<Input, CliError> {
        match self.editor.readline(PROMPT) {
            Ok(line) => {
                self.remember(&line);
                Ok(Input::Line(line))
            }
            Err(ReadlineError::Eof) => {
                // the line editor has ended the line
                if colour::is_dumb() {
                    show("\n");
                }
                Ok(Input::End)
            }
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => Ok(Input::Cleared),
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                notice::say("specserve: the line is not UTF-8");
                Ok(Input::Cleared)
            }
            Err(error) => Err(input_failed(into_io(error))),
        }
    }

    /// Keeps a line, also for conversations to come.
    fn remember(&mut self, line: &str) {
        if line.len() > HISTORY_LINE_BYTES_MAX || line.trim().is_empty() {
            return;
        }
        let kept = self.editor.add_history_entry(line).map_err(into_io).and_then(|_| self.keep());
        self.check(kept.err());
    }

    /// Appends new lines to the history's file.
    fn keep(&mut self) -> io::Result<()> {
        let Some(path) = &self.history else { return Ok(()) };
        // where there is no file, the line editor makes one under a umask that it sets for the
        // whole process
        OpenOptions::new().append(true).create(true).mode(OWNER_ONLY_FILE).open(path)?;
        self.editor.append_history(path).map_err(into_io)
    }

    /// Says once why the history's file cannot be used, and leaves it alone from then on.
    fn check(&mut self, error: Option<io::Error>) {
        if let Some(error) = error
            && let Some(path) = self.history.take()
        {
            let path = path.display();
            notice::say(format_args!("specserve: the history is not kept: {path}: {error}"));
        }
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(OWNER_ONLY).create(parent)
}

fn into_io(error: ReadlineError) -> io::Error {
    match error {
        ReadlineError::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::testing::ScratchDirectory;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    }

    fn entries(path: &Path) -> Vec<String> {
        Reader::open(Some(path.to_owned())).expect("opened").editor.history().iter().cloned().collect()
    }

    #[test]
    fn the_history_persists_between_conversations_and_is_private() {
        let directory = ScratchDirectory::new();
        let path = directory.path().join("state/specserve/history");
        let mut reader = Reader::open(Some(path.clone())).expect("opened");
        assert_eq!(mode(path.parent().expect("one")), 0o700);
        for line in ["one", "two\nlines", "two\nlines", " secret", &"x".repeat(4097)] {
            reader.remember(line);
        }
        assert_eq!(mode(&path), 0o600);
        assert_eq!(entries(&path), ["one", "two\nlines"]);
        // a file that was made readable is made private again
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("its owner may");
        reader.remember("three");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn two_conversations_at_a_time_do_not_lose_each_others_lines() {
        let directory = ScratchDirectory::new();
        let path = directory.path().join("history");
        let open = || Reader::open(Some(path.clone())).expect("opened");
        let (mut one, mut other) = (open(), open());
        for line in ["a", "b", "c"] {
            one.remember(&format!("{line}1"));
            other.remember(&format!("{line}2"));
        }
        assert_eq!(entries(&path), ["a1", "a2", "b1", "b2", "c1", "c2"]);
    }

    #[test]
    fn the_history_is_bounded() {
        let directory = ScratchDirectory::new();
        let path = directory.path().join("history");
        let mut reader = Reader::open(Some(path.clone())).expect("opened");
        for number in 0..HISTORY_LINES_MAX + 5 {
            reader.remember(&number.to_string());
        }
        let entries = entries(&path);
        assert_eq!((entries.len(), entries[0].as_str()), (HISTORY_LINES_MAX, "5"));
        assert!(std::fs::read_to_string(&path).expect("text").lines().count() <= HISTORY_LINES_MAX + 1);
    }

    #[test]
    fn a_history_that_cannot_be_read_is_left_alone() {
        let directory = ScratchDirectory::new();
        let path = directory.path().join("history");
        std::fs::write(&path, b"\xff\xfe\n").expect("written");
        let mut reader = Reader::open(Some(path.clone())).expect("opened all the same");
        reader.remember("one");
        assert_eq!(std::fs::read(&path).expect("there"), b"\xff\xfe\n");
        assert_eq!(reader.editor.history().iter().count(), 1, "this conversation has it");
    }
}
