//! Where the tracker finds the records of the volume that is mounted *now*, or waits for them.
//!
//! The tracker outlives mounts; a store must be closed before its file system is unmounted. The
//! slot is put between: empty while nothing is mounted. A `GraceStart` that meets an empty slot
//! is held until a store is put in, or until a deadline; so threads can be started before the
//! volume is mounted.
//!
//! A write to a frozen volume hangs with the store locked; questions about the records must not
//! hang with it (S10), so they are answered from a copy that is renewed after each write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ClientRecords;
use crate::records::{ClientRecord, RecordsError, Snapshot, Store};

/// Holder of at most one open [`Store`].
#[derive(Debug)]
pub struct RecordSlot {
    store: Mutex<Option<Store>>,
    view: Mutex<Option<Snapshot>>,
    filled: Condvar,
    keep_all: AtomicBool,
    seal: Mutex<Seal>,
    hold: Duration,
    patience: Duration,
}

/// A server that runs and that no client can have reached yet.
#[derive(Debug, Clone, Copy, Default)]
struct Seal {
    sealed: bool,
    /// Its grace ended meanwhile; the list of who may reclaim was kept.
    ended: bool,
}

impl RecordSlot {
    /// An empty slot; `hold` is how long a `GraceStart` waits for a store, `patience` how long
    /// all other upcalls do.
    pub fn new(hold: Duration, patience: Duration) -> Self {
        RecordSlot {
            store: Mutex::new(None),
            view: Mutex::new(None),
            filled: Condvar::new(),
            keep_all: AtomicBool::new(true),
            seal: Mutex::default(),
            hold,
            patience,
        }
    }

    fn set_view(&self, view: Option<Snapshot>) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Store>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the mounted volume's store in; a held `GraceStart` goes on.
    pub fn put(&self, store: Store) {
        self.set_view(Some(store.snapshot()));
        *self.lock() = Some(store);
        self.filled.notify_all();
    }

    /// Takes the store out, so that it can be closed before unmounting. Removals are ignored
    /// again from here on.
    pub fn take(&self) -> Option<Store> {
        self.keep_all.store(true, Ordering::Release);
        let store = self.lock().take();
        self.set_view(None);
        store
    }

    /// Writes the store anew where somebody else has damaged its files; what differed.
    ///
    /// # Errors
    /// Those of [`Store::mend`].
    pub fn mend(&self) -> Result<Option<RecordsError>, RecordsError> {
        let mut slot = self.lock();
        let Some(store) = slot.as_mut() else { return Ok(None) };
        let outcome = store.mend();
        self.set_view(Some(store.snapshot()));
        outcome
    }

    /// The records after the last write that returned, for the peer's mirror; none when no
    /// store is loaded. Never waits for the volume.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// While set, as it is at first, removals are accepted and not carried out (S6: gate closed,
    /// and one lease after). False when no store is loaded: nothing was set. Never waits.
    pub fn ignore_removals(&self, ignore: bool) -> bool {
        let loaded = self.snapshot().is_some();
        self.keep_all.store(ignore || !loaded, Ordering::Release);
        loaded
    }

    /// Are removals ignored now?
    pub fn keeps_all(&self) -> bool {
        self.keep_all.load(Ordering::Acquire)
    }

    fn seal_state(&self) -> MutexGuard<'_, Seal> {
        self.seal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before threads start: until [`RecordSlot::unseal`] no client reaches them. A grace that ends
    /// before was seen by nobody, and voids no list: the next start has it again.
    pub fn seal(&self) {
        *self.seal_state() = Seal { sealed: true, ended: false };
    }

    /// Before clients are let in. False: grace has ended, nobody could reclaim any more, and whoever came
    /// now could take what the others hold; this server must not be reached. Idempotent.
    pub fn unseal(&self) -> bool {
        let mut seal = self.seal_state();
        seal.sealed &= seal.ended;
        !seal.ended
    }

    /// Runs `work` on the store, waiting for one up to `limit`.
    fn with<T>(
        &self,
        limit: Duration,
        work: impl FnOnce(&mut Store) -> Result<T, RecordsError>,
    ) -> Result<T, RecordsError> {
        let until = Instant::now() + limit;
        let mut slot = self.lock();
        while slot.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RecordsError::NotLoaded);
            }
            let waited = self.filled.wait_timeout(slot, left);
            slot = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let store = slot.as_mut().ok_or(RecordsError::NotLoaded)?;
        let outcome = work(store);
        self.set_view(Some(store.snapshot()));
        outcome
    }
}

impl ClientRecords for RecordSlot {
    fn create(&self, client: &ClientRecord) -> Result<(), RecordsError> {
        self.with(self.patience, |store| store.create(client))
    }

    fn remove(&self, client: &ClientRecord) -> Result<(), RecordsError> {
        if self.keeps_all() {
            return Ok(());
        }
        self.with(self.patience, |store| store.remove(client))
    }

    fn may_reclaim(&self, client: &ClientRecord) -> Result<bool, RecordsError> {
        self.with(self.patience, |store| Ok(store.may_reclaim(client)))
    }

    fn grace_start(&self) -> Result<Vec<ClientRecord>, RecordsError> {
        self.with(self.hold, Store::grace_start)
    }

    fn grace_done(&self) -> Result<(), RecordsError> {
        let mut seal = self.seal_state();
        let list = self.snapshot().is_none_or(|s| !s.recovery.is_empty());
        if seal.sealed && list {
            seal.ended = true;
            return Ok(());
        }
        self.with(self.patience, Store::grace_done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    fn client(name: &str) -> ClientRecord {
        ClientRecord { name: name.into(), princhash: Vec::new() }
    }

    #[test]
    fn grace_start_is_held_until_the_store_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), true).unwrap();
        store.create(&client("a")).unwrap();
        let slot = Arc::new(RecordSlot::new(Duration::from_secs(10), Duration::ZERO));
        let waiting = Arc::clone(&slot);
        let job = thread::spawn(move || waiting.grace_start());
        thread::sleep(Duration::from_millis(30));
        assert!(!job.is_finished());
        slot.put(store);
        assert_eq!(job.join().unwrap().unwrap(), [client("a")]);
    }

    #[test]
    fn i9_removals_are_ignored_until_allowed_and_again_after_taking() {
        let dir = tempfile::tempdir().unwrap();
        let slot = RecordSlot::new(Duration::ZERO, Duration::ZERO);
        slot.put(Store::open(dir.path(), true).unwrap());
        slot.create(&client("a")).unwrap();
        slot.create(&client("b")).unwrap();
        slot.remove(&client("a")).unwrap();
        assert_eq!(slot.snapshot().unwrap().current.len(), 2);
        assert!(slot.ignore_removals(false));
        slot.remove(&client("a")).unwrap();
        assert_eq!(slot.snapshot().unwrap().current, [client("b")]);
        let store = slot.take().unwrap();
        slot.put(store);
        slot.remove(&client("b")).unwrap();
        assert_eq!(slot.snapshot().unwrap().current, [client("b")]);
    }

    #[test]
    fn s7_a_grace_that_nobody_could_see_voids_no_list() {
        let dir = tempfile::tempdir().unwrap();
        let slot = RecordSlot::new(Duration::ZERO, Duration::ZERO);
        let mut store = Store::open(dir.path(), true).unwrap();
        store.create(&client("a")).unwrap();
        slot.put(store);
        slot.seal();
        assert_eq!(slot.grace_start().unwrap(), [client("a")]);
        slot.grace_done().unwrap();
        assert!(!slot.unseal() && !slot.unseal(), "nobody is let in after its end");
        drop(slot.take());
        slot.put(Store::open(dir.path(), false).unwrap());
        slot.seal();
        assert_eq!(slot.grace_start().unwrap(), [client("a")], "a new server, a new grace");
        assert!(slot.unseal());
        slot.grace_done().unwrap();
        assert!(slot.snapshot().unwrap().recovery.is_empty(), "I11: seen, and void for ever");
        assert!(slot.unseal());
    }

    #[test]
    fn a_grace_that_nobody_needs_ends_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let slot = RecordSlot::new(Duration::ZERO, Duration::ZERO);
        slot.put(Store::open(dir.path(), true).unwrap());
        slot.seal();
        assert!(slot.grace_start().unwrap().is_empty());
        slot.grace_done().unwrap();
        assert!(slot.unseal());
    }

    #[test]
    fn an_upcall_waits_for_a_new_process_to_load_the_records() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Arc::new(RecordSlot::new(Duration::ZERO, Duration::from_secs(10)));
        let waiting = Arc::clone(&slot);
        let job = thread::spawn(move || waiting.create(&client("a")));
        thread::sleep(Duration::from_millis(30));
        assert!(!job.is_finished());
        slot.put(Store::open(dir.path(), true).unwrap());
        job.join().unwrap().unwrap();
        assert_eq!(slot.snapshot().unwrap().current, [client("a")]);
    }

    #[test]
    fn a_hold_ends_at_its_deadline_with_a_refusal() {
        let slot = RecordSlot::new(Duration::from_millis(20), Duration::from_millis(20));
        assert!(matches!(slot.grace_start(), Err(RecordsError::NotLoaded)));
        assert!(matches!(slot.create(&client("a")), Err(RecordsError::NotLoaded)));
        assert!(!slot.ignore_removals(false));
    }
}
