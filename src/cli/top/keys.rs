//! Keys of the dashboard.

use std::io;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

/// Keys that wait to be acted on.
const KEYS_MAX: usize = 16;

/// Action bound to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Quit.
    Quit,
    /// Pause, or resume.
    Pause,
    /// Draw again: the terminal was resized.
    Redraw,
}

/// Reads the terminal on a thread of its own, which ends with the process: a read cannot be
/// cancelled.
pub fn listen() -> mpsc::Receiver<io::Result<Key>> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        loop {
            let key = event::read().map(|event| key_of(&event)).transpose();
            let Some(key) = key else { continue };
            let failed = key.is_err();
            if sender.blocking_send(key).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

fn key_of(event: &Event) -> Option<Key> {
    let key = match event {
        Event::Resize(..) => return Some(Key::Redraw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char('c'), true) | (KeyCode::Char('q' | 'Q') | KeyCode::Esc, false) => Some(Key::Quit),
        (KeyCode::Char('p' | 'P' | ' '), false) => Some(Key::Pause),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn q_escape_and_ctrl_c_quit_and_p_and_space_pause() {
        let press = |code, modifiers| key_of(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = |code| press(code, KeyModifiers::NONE);
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(plain(code), Some(Key::Quit));
        }
        assert_eq!(press(KeyCode::Char('Q'), KeyModifiers::SHIFT), Some(Key::Quit));
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!([plain(KeyCode::Char('p')), plain(KeyCode::Char(' '))], [Some(Key::Pause); 2]);
        assert_eq!([plain(KeyCode::Char('c')), plain(KeyCode::Enter)], [None; 2]);
        assert_eq!(key_of(&Event::Resize(1, 1)), Some(Key::Redraw));
    }

    #[test]
    fn a_key_counts_once() {
        let release = KeyEvent::new_with_kind(KeyCode::Char('p'), KeyModifiers::NONE, KeyEventKind::Release);
        assert_eq!(key_of(&Event::Key(release)), None);
    }
}
