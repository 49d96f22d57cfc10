//! The connection of a handle to its store: it is opened when it is needed, and again in a child of a fork.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pyo3::prelude::*;
use tensorcask::{Durability, Reader, Store as EngineStore};

use crate::errors::{exception, invalid, of_store};
use crate::store::options::{Mode, OpenOptions};

/// An open store.
enum Handle {
    Reader(Reader),
    Writer(EngineStore),
}

/// The writers that are open, or that the parent process had open.
static WRITERS: Mutex<Vec<Weak<Handle>>> = Mutex::new(Vec::new());

/// Hands everything that was put to the operating system, so that a child of a fork can read it. An error is reported by
/// the next call of the store.
#[pyfunction]
pub(crate) fn _before_fork(py: Python<'_>) {
    let writers: Vec<Arc<Handle>> = WRITERS.lock().iter().filter_map(Weak::upgrade).collect();
    py.detach(|| {
        for writer in &writers {
            if let Handle::Writer(store) = &**writer {
                let _reported_later = store.flush_with(Durability::Buffered);
            }
        }
    });
}

/// The state of a handle.
enum State {
    Open {
        handle: Arc<Handle>,
        process: u32,
    },
    /// It was unpickled, or its process was forked; the next call opens it.
    ToOpen,
    Closed,
}

/// A store that is open, or is opened by the next call.
pub(super) struct Connection {
    folder: PathBuf,
    module_id: String,
    options: OpenOptions,
    /// The process that opened or unpickled it. Its children must not write.
    process: u32,
    state: Mutex<State>,
}

impl State {
    /// Drops the handle, unless it is that of a parent process.
    fn end(self) {
        if let Self::Open { handle, process } = self
            && process != std::process::id()
        {
            // The parent's threads and locks are not in this process, so nothing of the handle can be ended.
            std::mem::forget(handle);
        }
    }
}

impl Handle {
    fn reader(&self) -> &Reader {
        match self {
            Self::Reader(reader) => reader,
            Self::Writer(store) => store.reader(),
        }
    }
}

impl Connection {
    /// Opens the store, or leaves that to the first call if `lazily`.
    ///
    /// # Errors
    /// Those of the engine.
    pub(super) fn open(
        py: Python<'_>,
        folder: PathBuf,
        module_id: String,
        options: OpenOptions,
        lazily: bool,
    ) -> PyResult<Self> {
        let process = std::process::id();
        let connection = Self { folder, module_id, options, process, state: Mutex::new(State::ToOpen) };
        if !lazily {
            let handle = connection.opened(py, connection.options.mode())?;
            *connection.state.lock() = State::Open { handle, process };
        }
        Ok(connection)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn module_id(&self) -> &str {
        &self.module_id
    }

    pub(super) const fn options(&self) -> &OpenOptions {
        &self.options
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.state.lock(), State::Closed)
    }

    fn opened(&self, py: Python<'_>, mode: Mode) -> PyResult<Arc<Handle>> {
        let options = self.options.engine().clone();
        let opened = py.detach(|| match mode {
            Mode::Read => options.open_reader(&self.folder, &self.module_id).map(Handle::Reader),
            Mode::Append => options.open(&self.folder, &self.module_id).map(Handle::Writer),
        });
        let handle = opened.map_err(|error| of_store(py, &error))?;
        self.warn_of_damage(py, &handle)?;
        let handle = Arc::new(handle);
        if mode == Mode::Append {
            let mut writers = WRITERS.lock();
            writers.retain(|writer| writer.strong_count() > 0);
            writers.push(Arc::downgrade(&handle));
        }
        Ok(handle)
    }

    /// Warns if the store was not opened whole.
    fn warn_of_damage(&self, py: Python<'_>, handle: &Handle) -> PyResult<()> {
        let report = handle.reader().open_report();
        if report.quarantined.is_empty() && report.missing.is_empty() {
            return Ok(());
        }
        let first = report.quarantined.first().map(|file| format!("{}: {}", file.path.display(), file.why));
        let first = first.or_else(|| report.missing.first().map(ToString::to_string)).unwrap_or_default();
        let message = format!(
            "the store {:?} was opened without {} damaged and {} missing files, first {first}; `tensorcask verify` lists \
             what was lost",
            self.path(),
            report.quarantined.len(),
            report.missing.len()
        );
        let category = py.import("tensorcask._errors")?.getattr("TensorcaskWarning")?;
        PyErr::warn(py, &category, &std::ffi::CString::new(message).unwrap_or_default(), 2)
    }

    /// Calls `f` with the reader, which is opened if it is not.
    pub(super) fn with_reader<T>(&self, py: Python<'_>, f: impl FnOnce(&Reader) -> PyResult<T>) -> PyResult<T> {
        let open = match &*self.state.lock() {
            State::Open { handle, process } if *process == std::process::id() => Some(Arc::clone(handle)),
            State::Closed => return Err(self.closed(py)),
            _ => None,
        };
        let handle = open.map_or_else(|| self.reopen(py, Mode::Read), Ok)?;
        f(handle.reader())
    }

    /// Calls `f` with the writer.
    pub(super) fn with_writer<T>(&self, py: Python<'_>, f: impl FnOnce(&EngineStore) -> PyResult<T>) -> PyResult<T> {
        if self.options.mode() == Mode::Read {
            return Err(exception(
                py,
                "ReadOnlyError",
                format!("the store {:?} was opened with mode=\"r\": open it with mode=\"a\" to write", self.path()),
            ));
        }
        if self.process != std::process::id() {
            return Err(exception(
                py,
                "ForkedError",
                "the store was opened before this process was forked: open it in the child to write".to_owned(),
            ));
        }
        let open = match &*self.state.lock() {
            State::Open { handle, .. } if matches!(**handle, Handle::Writer(_)) => Some(Arc::clone(handle)),
            State::Closed => return Err(self.closed(py)),
            _ => None,
        };
        let handle = open.map_or_else(|| self.reopen(py, Mode::Append), Ok)?;
        match &*handle {
            Handle::Writer(store) => f(store),
            Handle::Reader(_) => Err(invalid(py, "the store could not be opened for writing")),
        }
    }

    /// Opens the store in this process.
    fn reopen(&self, py: Python<'_>, mode: Mode) -> PyResult<Arc<Handle>> {
        let handle = self.opened(py, mode)?;
        let process = std::process::id();
        let mut state = self.state.lock();
        match &*state {
            State::Closed => {
                drop(state);
                return Err(self.closed(py));
            }
            // Another thread was faster.
            State::Open { handle: there, process: of }
                if *of == process && (mode == Mode::Read || matches!(**there, Handle::Writer(_))) =>
            {
                return Ok(Arc::clone(there));
            }
            _ => {}
        }
        let former = std::mem::replace(&mut *state, State::Open { handle: Arc::clone(&handle), process });
        drop(state);
        former.end();
        Ok(handle)
    }

    fn closed(&self, py: Python<'_>) -> PyErr {
        invalid(py, format!("the store {:?} is closed: open it again", self.path()))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(&self.module_id)
    }

    /// Hands what was put to the operating system, so that other processes read it.
    pub(super) fn publish(&self, py: Python<'_>) -> PyResult<()> {
        let open = match &*self.state.lock() {
            State::Open { handle, process } if *process == std::process::id() => Some(Arc::clone(handle)),
            _ => None,
        };
        match open.as_deref() {
            Some(Handle::Writer(store)) => {
                py.detach(|| store.flush_with(Durability::Buffered)).map_err(|error| of_store(py, &error))
            }
            _ => Ok(()),
        }
    }

    /// Flushes and closes.
    pub(super) fn close(&self, py: Python<'_>) -> PyResult<()> {
        let former = std::mem::replace(&mut *self.state.lock(), State::Closed);
        if let State::Open { handle, process } = &former
            && *process == std::process::id()
            && let Handle::Writer(store) = &**handle
        {
            py.detach(|| store.close()).map_err(|error| of_store(py, &error))?;
        }
        py.detach(|| former.end());
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        std::mem::replace(self.state.get_mut(), State::Closed).end();
    }
}
