//! `chat` and `top` on a terminal, against a scripted daemon.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const ONCE: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Once\"}}]}\n\n";
const METRICS: &str =
    "specserve_engine_info{model=\"tiny\",policy=\"none\"} 1\nspecserve_requests_running 3\n";

/// A daemon on a socket of its own. Answers never end; it reports each one that is cancelled.
struct Daemon {
    socket: PathBuf,
    cancelled: Receiver<()>,
    directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("bound");
        let (sender, cancelled) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, sender) = (stream.expect("a client"), sender.clone());
                std::thread::spawn(move || answer(stream, &sender));
            }
        });
        Daemon { socket, cancelled, directory }
    }
}

fn answer(mut stream: UnixStream, cancelled: &Sender<()>) {
    let mut request = [0; 4096];
    let length = stream.read(&mut request).expect("a request");
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let body = match request.split_whitespace().nth(1) {
        Some("/v1/models") => "{\"data\":[{\"id\":\"tiny\"}]}",
        Some("/v1/engine/state") => "{}",
        Some("/metrics") => METRICS,
        _ => ONCE,
    };
    let endless = body == ONCE;
    let length = if endless { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{length}\r\n{body}");
    stream.write_all(answer.as_bytes()).expect("it listens");
    if endless {
        // until the client is gone
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        // the test may be over
        let _ = cancelled.send(());
    }
}

/// A program on a terminal.
struct Terminal {
    child: Child,
    keyboard: File,
    /// The program's side.
    line: File,
    cooked: LocalModes,
    screen: Receiver<Vec<u8>>,
    /// What was shown and not yet awaited.
    shown: String,
}

impl Terminal {
    fn run(daemon: &Daemon, arguments: &[&str]) -> Terminal {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&keyboard).and_then(|()| unlockpt(&keyboard)).expect("its other side");
        let name = ptsname(&keyboard, Vec::new()).expect("its name");
        let line = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("opened");
        let (keyboard, line) = (File::from(keyboard), File::from(line));
        resize(&keyboard, 80, 24);
        let same = || line.try_clone().expect("another handle");
        let child = Command::new(env!("CARGO_BIN_EXE_specserve"))
            .args(arguments)
            .arg("--socket")
            .arg(&daemon.socket)
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", daemon.directory.path())
            .env_remove("NO_COLOR")
            .stdin(same())
            .stdout(same())
            .stderr(same())
            .spawn()
            .expect("the program starts");
        let cooked = tcgetattr(&line).expect("a terminal").local_modes;
        let (sender, screen) = channel();
        let mut shown = keyboard.try_clone().expect("another handle");
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = shown.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keyboard, line, cooked, screen, shown: String::new() }
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits until `text` is shown; what comes after it is shown next.
    fn shows(&mut self, text: &str) {
        loop {
            if let Some(place) = self.shown.find(text) {
                self.shown.drain(..place + text.len());
                return;
            }
            let Ok(bytes) = self.screen.recv_timeout(PATIENCE) else {
                panic!("{text:?} is not shown, but {:?}", self.shown);
            };
            self.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for the end, after which the terminal must be as it was.
    fn ends(mut self) -> ExitStatus {
        let status = self.child.wait().expect("it ends");
        assert_eq!(tcgetattr(&self.line).expect("a terminal").local_modes, self.cooked);
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // it may have ended
        let _ = self.child.kill();
    }
}

fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("resized");
}

fn history(directory: &Path) -> Option<String> {
    std::fs::read_to_string(directory.join("specserve/chat_history")).ok()
}

#[test]
fn ctrl_c_stops_an_answer_and_the_prompt_and_its_history_come_back() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::run(&daemon, &["chat"]);
    terminal.shows("Chatting with tiny.");
    terminal.types("/typo\r");
    terminal.shows("no command /typo");
    terminal.types("Tell me\r");
    terminal.shows("Once");
    terminal.signal(Signal::INT);
    terminal.shows("stopped");
    daemon.cancelled.recv_timeout(PATIENCE).expect("the request is cancelled");
    // Ctrl-C at the prompt clears the line, and Up brings back the message
    terminal.shows("> ");
    terminal.types("a slip\x03");
    terminal.shows("> ");
    terminal.types("\x1b[A\r");
    terminal.shows("Tell me");
    terminal.shows("Once");
    terminal.signal(Signal::INT);
    terminal.shows("stopped");
    terminal.shows("> ");
    terminal.types("\x04");
    assert_eq!(terminal.ends().code(), Some(0));
    assert_eq!(history(daemon.directory.path()).as_deref(), Some("#V2\n/typo\nTell me\n"));
}

#[test]
fn chat_keeps_no_history_unless_it_may_and_sigterm_at_the_prompt_restores_the_terminal() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::run(&daemon, &["chat", "--no-history"]);
    terminal.shows("> ");
    terminal.types("/help\r");
    terminal.shows("--max-tokens");
    terminal.shows("> ");
    terminal.types("half a line");
    terminal.shows("half a line");
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.ends().code(), Some(143));
    assert_eq!(history(daemon.directory.path()), None);
}

const LEAVE_ALTERNATE_SCREEN: &str = "\x1b[?1049l";

#[test]
fn top_fits_its_terminal_and_leaves_it_as_it_was() {
    let daemon = Daemon::start();
    for keys in ["q", "\x1b", "\x03"] {
        let mut terminal = Terminal::run(&daemon, &["top", "--interval-ms", "100"]);
        terminal.shows("tiny, policy none");
        terminal.shows("q quit");
        terminal.types("p");
        terminal.shows("paused");
        terminal.types(keys);
        terminal.shows(LEAVE_ALTERNATE_SCREEN);
        assert_eq!(terminal.ends().code(), Some(0), "{keys:?}");
    }
}

#[test]
fn top_follows_the_size_of_its_terminal_and_sigterm_restores_it() {
    let daemon = Daemon::start();
    let mut terminal = Terminal::run(&daemon, &["top", "--interval-ms", "100"]);
    terminal.shows("q quit");
    for (columns, rows) in [(0, 0), (1, 1)] {
        resize(&terminal.keyboard, columns, rows);
        terminal.signal(Signal::WINCH);
    }
    resize(&terminal.keyboard, 100, 30);
    terminal.signal(Signal::WINCH);
    terminal.shows("q quit");
    terminal.signal(Signal::TERM);
    terminal.shows(LEAVE_ALTERNATE_SCREEN);
    assert_eq!(terminal.ends().code(), Some(143));
}
