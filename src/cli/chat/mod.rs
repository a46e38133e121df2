//! `specserve chat`: chat with the model.

mod conversation;
mod daemon;
mod dialogue;
mod editor;
mod entry;
mod history;
#[cfg(test)]
mod tests;

use std::future::pending;
use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::error::CliError;
use super::host::DaemonHost;
use super::signals::Signals;
use super::{SOCKET_DEFAULT, colour, interruptible};
use conversation::{Conversation, Said};
use daemon::Daemon;
use dialogue::Dialogue;
use editor::Terminal;

/// Longest message read from standard input, in bytes.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Sends one message, or starts an interactive conversation if no message is given and
/// standard input is a terminal.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// The message; read from standard input if omitted.
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Socket of a running daemon. If omitted, the daemon on /tmp/specserve.sock is used if there is
    /// one, or else started for this chat.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Model to chat with, in a daemon for this chat: a directory or a name on the Hugging Face hub
    /// (org/name); the embedded pair if omitted.
    #[arg(long, value_name = "MODEL", conflicts_with = "socket")]
    model: Option<String>,
    /// Draft model for --model: a directory, org/name, or ngram.
    #[arg(long, value_name = "MODEL", requires = "model")]
    draft: Option<String>,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Sampling seed; the same seed reproduces the reply.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Maximum output tokens per reply. Without it, an answer ends where the model ends it, or with
    /// the context.
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
    /// System message.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Keep no history of the messages, which Up brings back in later conversations.
    #[arg(long)]
    no_history: bool,
    /// Print one JSON document instead of streaming; requires a single message.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]. In a conversation, a rejected request is reported and the conversation continues.
pub async fn run<H: DaemonHost>(args: &ChatArgs, host: &H, out: &mut impl Write) -> Result<(), CliError> {
    let socket = Path::new(SOCKET_DEFAULT);
    let typed = args.text.is_none() && !args.json;
    if typed && stdin().is_terminal() && stdout().is_terminal() {
        converse(args, host, socket, out).await
    } else {
        interruptible(say_once(args, host, socket, out)).await
    }
}

/// Holds a conversation on the terminal, which handles signals itself.
async fn converse<H: DaemonHost>(
    args: &ChatArgs,
    host: &H,
    default_socket: &Path,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let start = async {
        let daemon = Daemon::find(args, host, default_socket).await?;
        let client = daemon.client();
        let conversation = Conversation::start(args, client.model().await?);
        Ok((daemon, client, conversation))
    };
    let (daemon, client, conversation) = interruptible(start).await?;
    let history = if args.no_history { None } else { history::file() };
    let mut dialogue = Dialogue {
        client: &client,
        conversation,
        prompt: Terminal::open(history)?,
        interrupts: Signals::install()?,
        out,
        colours: colour::on(true),
    };
    let result = dialogue.hold().await;
    drop(dialogue);
    let left = async {
        daemon.leave().await;
        Ok(())
    };
    interruptible(left).await?;
    result
}

/// Sends one message.
async fn say_once<H: DaemonHost>(
    args: &ChatArgs,
    host: &H,
    default_socket: &Path,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let text = match &args.text {
        Some(text) => text.clone(),
        None => read_message().await?,
    };
    let daemon = Daemon::find(args, host, default_socket).await?;
    let result = print_answer(args, &daemon, &text, out).await;
    daemon.leave().await;
    result
}

async fn print_answer<D: super::host::RunningDaemon>(
    args: &ChatArgs,
    daemon: &Daemon<D>,
    text: &str,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let client = daemon.client();
    let mut conversation = Conversation::start(args, client.model().await?);
    let print = |piece: &str| {
        if args.json {
            return Ok(());
        }
        out.write_all(piece.as_bytes())?;
        out.flush()
    };
    let said = conversation.say(&client, text, print, pending::<std::convert::Infallible>()).await?;
    match said {
        Said::Answer(answer) if args.json => writeln!(out, "{:#}", json!(answer))?,
        Said::Answer(_) => writeln!(out)?,
        Said::Stopped(never) => match never {},
    }
    Ok(())
}

fn input_failed(source: std::io::Error) -> CliError {
    CliError::File { path: "standard input".into(), source }
}

async fn read_message() -> Result<String, CliError> {
    let mut text = String::new();
    let mut input = tokio::io::stdin().take(MESSAGE_BYTES_MAX + 1);
    input.read_to_string(&mut text).await.map_err(input_failed)?;
    match text.len() as u64 {
        bytes if bytes > MESSAGE_BYTES_MAX => Err(CliError::Failed(format!(
            "the message is longer than the limit of {MESSAGE_BYTES_MAX} bytes"
        ))),
        _ if text.trim().is_empty() => Err(CliError::Failed("the message is empty".to_owned())),
        _ => Ok(text),
    }
}
