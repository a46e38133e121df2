//! The conversation on a terminal.

use std::io::Write;

use super::conversation::{Conversation, Said};
use super::entry::{Entry, help, hint};
use crate::cli::answer::ChatReply;
use crate::cli::client::Client;
use crate::cli::error::CliError;
use crate::cli::notice;
use crate::cli::signals::{Received, Signals};

/// What comes from the prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// A line.
    Line(String),
    /// The line was cleared: nothing to do.
    Cleared,
    /// No more lines.
    End,
}

/// Where lines come from.
pub trait Prompt {
    /// Reads a line. If the future is dropped, the next one waits for the same line.
    async fn line(&mut self) -> Result<Input, CliError>;

    /// Tells the prompt that SIGINT came while it was waiting.
    fn interrupted(&mut self);
}

/// Where signals come from.
pub trait Interrupts {
    /// The next signal.
    async fn next(&mut self) -> Received;
}

impl Interrupts for Signals {
    async fn next(&mut self) -> Received {
        Signals::next(self).await
    }
}

/// A conversation between a user and a daemon.
pub struct Dialogue<'a, P, I, W> {
    /// The daemon.
    pub client: &'a Client,
    /// What was said.
    pub conversation: Conversation,
    /// The user's lines.
    pub prompt: P,
    /// The user's signals.
    pub interrupts: I,
    /// The terminal.
    pub out: W,
    /// Whether it shows colours.
    pub colours: bool,
}

impl<P: Prompt, I: Interrupts, W: Write> Dialogue<'_, P, I, W> {
    /// Runs the conversation until the user ends it.
    ///
    /// # Errors
    /// [`CliError`] of the terminal; [`CliError::Interrupted`] by anything but SIGINT, which stops
    /// an answer. A rejected request is reported and the conversation continues.
    pub async fn hold(&mut self) -> Result<(), CliError> {
        let model = self.conversation.model();
        writeln!(self.out, "Chatting with {model}. /help lists the commands, Ctrl-D ends.")?;
        loop {
            let line = match self.input().await? {
                Input::Line(line) => line,
                Input::Cleared => continue,
                Input::End => return Ok(()),
            };
            match Entry::parse(&line) {
                Entry::Nothing => {}
                Entry::Quit => return Ok(()),
                Entry::Message(text) => self.answer(text).await?,
                Entry::Help => write!(self.out, "{}", help(self.conversation.tokens_max()))?,
                Entry::Clear => {
                    self.conversation.clear();
                    self.remark("The conversation is forgotten.")?;
                }
                Entry::System(text) => {
                    self.conversation.set_system(text);
                    let done = if text.is_some() { "set" } else { "removed" };
                    self.remark(&format!("The system message is {done}."))?;
                }
                Entry::Unknown(line) => self.remark(&hint(line))?,
            }
        }
    }

    async fn input(&mut self) -> Result<Input, CliError> {
        tokio::select! {
            input = self.prompt.line() => input,
            signal = self.interrupts.next() => {
                if signal != Received::INTERRUPT {
                    return Err(CliError::Interrupted(signal));
                }
                self.prompt.interrupted();
                Ok(Input::Cleared)
            }
        }
    }

    async fn answer(&mut self, text: &str) -> Result<(), CliError> {
        let out = &mut self.out;
        let mut printed = false;
        let print = |piece: &str| {
            printed = true;
            out.write_all(printable(piece).as_bytes())?;
            out.flush()
        };
        let said = self.conversation.say(self.client, text, print, self.interrupts.next()).await;
        if printed {
            writeln!(self.out)?;
        }
        match said {
            Ok(Said::Answer(reply)) => self.remark(&figures(&reply)),
            Ok(Said::Stopped(Received::INTERRUPT)) => self.remark("stopped"),
            Ok(Said::Stopped(signal)) => Err(CliError::Interrupted(signal)),
            Err(CliError::Client(error)) => {
                notice::say(format_args!("specserve: {error}"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Prints a remark of this program, dimmed.
    fn remark(&mut self, text: &str) -> Result<(), CliError> {
        let (dim, plain) = if self.colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        Ok(writeln!(self.out, "{dim}{text}{plain}")?)
    }
}

/// Length and speed of an answer.
fn figures(reply: &ChatReply) -> String {
    let tokens = reply.usage.completion_tokens;
    let mut parts = vec![format!("{tokens} {}", if tokens == 1 { "token" } else { "tokens" })];
    if let Some(tpot_ms) = reply.metrics.tpot_ms.filter(|&ms| ms > 0.0) {
        parts.push(format!("{:.1} tokens/s", 1e3 / tpot_ms));
    }
    let speculation = &reply.metrics.speculative_decoding;
    if let Some(length) = speculation.mean_acceptance_length.filter(|_| speculation.drafted > 0) {
        parts.push(format!("{length:.2} tokens per target step"));
    }
    if reply.finish_reason.as_deref() == Some("length") {
        parts.push("cut at the token limit".to_owned());
    }
    parts.join(", ")
}

/// Without control characters, with which a text could change the terminal.
fn printable(text: &str) -> String {
    let harmless = |character: char| !character.is_control() || matches!(character, '\n' | '\t');
    text.chars().map(|character| if harmless(character) { character } else { '\u{fffd}' }).collect()
}
