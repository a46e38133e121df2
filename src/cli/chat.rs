//! `specserve chat`: chat with the model.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt};

use super::SOCKET_DEFAULT;
use super::answer::{ChatReply, chat};
use super::client::Client;
use super::error::CliError;
use super::host::DaemonHost;
use super::private::PrivateDaemon;
use crate::config::Config;

/// Longest message read from standard input, in bytes.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Sends one message, or starts an interactive conversation if no message is given and
/// standard input is a terminal.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// The message; read from standard input if omitted.
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// Socket of a running daemon. If omitted, a daemon is started for this chat.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Model to chat with, a directory or a name on the Hugging Face hub (org/name); the embedded
    /// pair if omitted.
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
    /// Maximum output tokens per reply.
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
    /// System message.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Print one JSON document instead of streaming; requires a single message.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]. In a conversation, a rejected request is reported and the conversation continues.
pub async fn run<H: DaemonHost>(args: &ChatArgs, host: &H, out: &mut impl Write) -> Result<(), CliError> {
    if let Some(socket) = &args.socket {
        return talk(args, &Client::new(socket), out).await;
    }
    let config = match &args.model {
        None => Config::default_tiny(),
        // the socket is replaced by a private one
        Some(model) => Config::of_models(Path::new(SOCKET_DEFAULT), None, model, args.draft.as_deref())?,
    };
    let daemon = PrivateDaemon::start(host, config).await?;
    let result = talk(args, &daemon.client(), out).await;
    daemon.shutdown().await;
    result
}

async fn talk(args: &ChatArgs, client: &Client, out: &mut impl Write) -> Result<(), CliError> {
    let mut conversation = Conversation::start(args, client.model().await?);
    match &args.text {
        Some(text) => one_shot(args, client, &mut conversation, text, out).await,
        None if std::io::stdin().is_terminal() && !args.json => {
            interact(client, &mut conversation, out).await
        }
        None => one_shot(args, client, &mut conversation, &read_message().await?, out).await,
    }
}

async fn one_shot(
    args: &ChatArgs,
    client: &Client,
    conversation: &mut Conversation,
    text: &str,
    out: &mut impl Write,
) -> Result<(), CliError> {
    if args.json {
        let answer = conversation.say(client, text, |_| Ok(())).await?;
        writeln!(out, "{:#}", json!(answer))?;
        return Ok(());
    }
    print_answer(client, conversation, text, out).await
}

async fn interact(
    client: &Client,
    conversation: &mut Conversation,
    out: &mut impl Write,
) -> Result<(), CliError> {
    writeln!(out, "Chatting with {}. /clear resets the conversation, /quit exits.", conversation.model)?;
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    loop {
        write!(out, "> ")?;
        out.flush()?;
        let Some(line) = lines.next_line().await.map_err(input_failed)? else { return Ok(()) };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/clear" => conversation.clear(),
            text => match print_answer(client, conversation, text, out).await {
                Err(CliError::Client(error)) => eprintln!("specserve: {error}"),
                other => other?,
            },
        }
    }
}

async fn print_answer(
    client: &Client,
    conversation: &mut Conversation,
    text: &str,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let print = |piece: &str| {
        out.write_all(piece.as_bytes())?;
        out.flush()
    };
    conversation.say(client, text, print).await?;
    writeln!(out)?;
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

/// An interactive conversation.
struct Conversation {
    model: String,
    settings: Value,
    messages: Vec<Value>,
    /// Number of leading messages that `/clear` keeps: the system message, if any.
    kept: usize,
}

impl Conversation {
    fn start(args: &ChatArgs, model: String) -> Conversation {
        let mut settings = json!({});
        let given = [
            ("temperature", args.temperature.map(|value| json!(value))),
            ("seed", args.seed.map(|value| json!(value))),
            ("max_tokens", args.max_tokens.map(|value| json!(value))),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                settings[key] = value;
            }
        }
        let messages: Vec<Value> =
            args.system.iter().map(|text| json!({ "role": "system", "content": text })).collect();
        Conversation { model, settings, kept: messages.len(), messages }
    }

    fn clear(&mut self) {
        self.messages.truncate(self.kept);
    }

    /// Sends `text` and appends the exchange to the conversation; a failed one is discarded.
    async fn say(
        &mut self,
        client: &Client,
        text: &str,
        on_text: impl FnMut(&str) -> std::io::Result<()>,
    ) -> Result<ChatReply, CliError> {
        let before = self.messages.len();
        self.messages.push(json!({ "role": "user", "content": text }));
        let mut body = self.settings.clone();
        body["model"] = json!(self.model);
        body["messages"] = json!(self.messages);
        match chat(client, body, on_text).await {
            Ok(answer) => {
                self.messages.push(json!({ "role": "assistant", "content": answer.text }));
                Ok(answer)
            }
            Err(error) => {
                self.messages.truncate(before);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{ScriptedHost, chat_answer};

    fn args(text: &str) -> ChatArgs {
        ChatArgs {
            text: Some(text.to_owned()),
            socket: None,
            model: None,
            draft: None,
            temperature: Some(0.0),
            seed: Some(7),
            max_tokens: Some(5),
            system: Some("Be brief.".to_owned()),
            json: false,
        }
    }

    #[tokio::test]
    async fn one_message_prints_its_answer_from_a_private_daemon() {
        let host = ScriptedHost::new(|_, _| chat_answer(&["Hel", "lo"]));
        let mut out = Vec::new();
        run(&args("Hi"), &host, &mut out).await.expect("answered");
        assert_eq!(String::from_utf8_lossy(&out), "Hello\n");
        let body = &host.requests()[0];
        assert_eq!(body["model"], "tiny");
        assert_eq!(body["seed"], 7);
        assert_eq!(body["max_tokens"], 5);
        assert_eq!(body["messages"][0]["content"], "Be brief.");
        assert_eq!(body["messages"][1]["content"], "Hi");
        assert_eq!(body["stream"], true);
    }

    #[tokio::test]
    async fn a_model_needs_no_configuration_file() {
        let host = ScriptedHost::new(|config, _| {
            chat_answer(&[&format!("{}, {:?}", config.target.model, config.draft)])
        });
        let named =
            ChatArgs { model: Some("models/m".to_owned()), draft: Some("ngram".to_owned()), ..args("Hi") };
        let mut out = Vec::new();
        run(&named, &host, &mut out).await.expect("answered");
        assert_eq!(String::from_utf8_lossy(&out), "models/m, Some(Ngram)\n");
        let nothing = ChatArgs { model: Some(String::new()), ..args("Hi") };
        let error = run(&nothing, &host, &mut Vec::new()).await.expect_err("no model");
        assert_eq!(error.exit_code(), 64);
    }

    #[tokio::test]
    async fn json_prints_the_answer_as_one_document() {
        let host = ScriptedHost::new(|_, _| chat_answer(&["Hel", "lo"]));
        let mut out = Vec::new();
        run(&ChatArgs { json: true, ..args("Hi") }, &host, &mut out).await.expect("answered");
        let document: Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(document["text"], "Hello");
        assert_eq!(document["finish_reason"], "stop");
        assert_eq!(document["usage"]["completion_tokens"], 2);
    }

    #[tokio::test]
    async fn a_conversation_remembers_and_forgets() {
        let host = ScriptedHost::new(|_, _| chat_answer(&["Yes"]));
        let daemon = PrivateDaemon::start(&host, Config::default_tiny()).await.expect("started");
        let client = daemon.client();
        let mut conversation = Conversation::start(&args(""), "tiny".to_owned());
        conversation.say(&client, "One", |_| Ok(())).await.expect("answered");
        conversation.say(&client, "Two", |_| Ok(())).await.expect("answered");
        assert_eq!(host.requests()[1]["messages"].as_array().map(Vec::len), Some(4));
        conversation.clear();
        conversation.say(&client, "Three", |_| Ok(())).await.expect("answered");
        assert_eq!(host.requests()[2]["messages"].as_array().map(Vec::len), Some(2));
        daemon.shutdown().await;
    }

    #[tokio::test]
    async fn a_reader_that_left_ends_the_command_quietly() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let host = ScriptedHost::new(|_, _| chat_answer(&["Hel", "lo"]));
        let error = run(&args("Hi"), &host, &mut Gone).await.expect_err("no reader");
        assert!(error.is_broken_pipe());
        assert_eq!(error.exit_code(), 0);
    }
}
