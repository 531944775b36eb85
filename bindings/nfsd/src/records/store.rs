//! The store on one mounted volume: opening, appending, changing generations.
//!
//! Every change is on stable storage when its call returns. Order of a change of generation: the
//! new file complete and synced, then `state` replaced, then old files removed; a crash between
//! leaves files that no `state` names, and they are removed at the next opening.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::format::{self, Entry, State};
use super::{ClientRecord, RecordsError, Snapshot};

type Clients = BTreeMap<Vec<u8>, ClientRecord>;
type Result<T> = std::result::Result<T, RecordsError>;

/// Where the records are, below the mount point.
const DIR: &str = ".nasd/clients";

/// The open records of one volume. Holds a file open on the volume: drop it before unmounting.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    state: State,
    recovery: Clients,
    current: Clients,
    log: File,
    entries: usize,
    poisoned: bool,
}

impl Store {
    /// Opens the records on the volume mounted at `mount`.
    ///
    /// `allow_new` is for the first start ever on a fresh file system: then, and only then,
    /// missing records are made, empty. Records that exist are never made anew.
    ///
    /// # Errors
    /// [`RecordsError::Missing`] and [`RecordsError::Damaged`] must stop the start.
    pub fn open(mount: &Path, allow_new: bool) -> Result<Self> {
        let dir = mount.join(DIR);
        let state = match read_state(&dir)? {
            Some(state) => state,
            None if allow_new => create_new(mount, &dir)?,
            None => return Err(RecordsError::Missing { dir }),
        };
        let (current, entries, good_len) = load(&dir, state.current)?;
        let recovery = match state.recovery {
            Some(generation) => load(&dir, generation)?.0,
            None => Clients::new(),
        };
        let log = open_log(&generation_file(&dir, state.current), good_len)?;
        let store = Store { dir, state, recovery, current, log, entries, poisoned: false };
        store.remove_unnamed();
        Ok(store)
    }

    /// The records as they are.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            generation: self.state.current,
            in_grace: self.state.recovery.is_some(),
            recovery: self.recovery.values().cloned().collect(),
            current: self.current.values().cloned().collect(),
        }
    }

    /// May this client reclaim in the grace that runs?
    pub fn may_reclaim(&self, client: &ClientRecord) -> bool {
        self.recovery.contains_key(&client.name)
    }

    /// Records a client durably. Nothing is written when it is recorded already.
    pub fn create(&mut self, client: &ClientRecord) -> Result<()> {
        format::check(client)?;
        if self.current.get(&client.name) == Some(client) {
            return Ok(());
        }
        self.append(&Entry::Add(client.clone()))?;
        self.current.insert(client.name.clone(), client.clone());
        Ok(())
    }

    /// Forgets a client durably. [`crate::cld::RecordSlot`] decides whether it may (S6).
    ///
    /// The recovery set keeps it: if this grace is interrupted it may reclaim once more, which
    /// at worst prolongs a grace.
    pub fn remove(&mut self, client: &ClientRecord) -> Result<()> {
        if !self.current.contains_key(&client.name) {
            return Ok(());
        }
        format::check(client)?;
        self.append(&Entry::Remove(client.clone()))?;
        self.current.remove(&client.name);
        Ok(())
    }

    /// Begins a grace, or begins it again; the list of clients that may reclaim.
    pub fn grace_start(&mut self) -> Result<Vec<ClientRecord>> {
        self.guarded(Self::begin_grace)?;
        Ok(self.recovery.values().cloned().collect())
    }

    fn begin_grace(&mut self) -> Result<()> {
        let mut recovery = self.recovery.clone();
        recovery.extend(self.current.clone());
        let highest = self.state.current.max(self.state.recovery.unwrap_or(0));
        let named = match self.state.recovery {
            // First start of this grace: the current log, as it is, is the recovery set.
            None => self.state.current,
            Some(_) => highest + 1,
        };
        if named != self.state.current {
            write_generation(&self.dir, named, recovery.values())?;
        }
        let next = State { current: highest.max(named) + 1, recovery: Some(named) };
        let good_len = write_generation(&self.dir, next.current, std::iter::empty())?;
        let log = open_log(&generation_file(&self.dir, next.current), good_len)?;
        write_state(&self.dir, next)?;
        (self.state, self.log, self.entries) = (next, log, 0);
        (self.recovery, self.current) = (recovery, Clients::new());
        self.remove_unnamed();
        Ok(())
    }

    /// Ends the grace: on return the recovery set is void for ever.
    pub fn grace_done(&mut self) -> Result<()> {
        self.guarded(|store| {
            let next = State { recovery: None, ..store.state };
            write_state(&store.dir, next)?;
            store.state = next;
            store.recovery = Clients::new();
            store.remove_unnamed();
            Ok(())
        })
    }

    /// Compares what is on the volume with what is known here, and writes it anew where it differs, as after
    /// somebody else has touched it; what differed. The next server could not start with it.
    ///
    /// # Errors
    /// A file that could not be read: nothing is written then. [`RecordsError::Poisoned`].
    pub fn mend(&mut self) -> Result<Option<RecordsError>> {
        if self.poisoned {
            return Err(RecordsError::Poisoned);
        }
        match self.compare() {
            Ok(()) => Ok(None),
            Err(error @ RecordsError::Io { .. }) => Err(error),
            Err(differs) => self.guarded(Self::write_anew).map(|()| Some(differs)),
        }
    }

    fn compare(&self) -> Result<()> {
        let damaged = |file, what| Err(RecordsError::Damaged { file, offset: 0, what });
        let Some(state) = read_state(&self.dir)? else {
            return Err(RecordsError::Missing { dir: self.dir.clone() });
        };
        if state != self.state {
            return damaged(self.dir.join("state"), "names other generations");
        }
        let (current, entries, good_len) = load(&self.dir, state.current)?;
        let log = generation_file(&self.dir, state.current);
        let length = fs::metadata(&log).map_err(io_at(&log))?.len();
        // The next entry must follow the last one.
        if current != self.current || entries != self.entries || length != good_len as u64 {
            return damaged(log, "holds something else");
        }
        match state.recovery {
            Some(named) if load(&self.dir, named)?.0 != self.recovery => {
                damaged(generation_file(&self.dir, named), "holds something else")
            }
            _ => Ok(()),
        }
    }

    fn write_anew(&mut self) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(io_at(&self.dir))?;
        let highest = self.state.current.max(self.state.recovery.unwrap_or(0));
        let recovery = self.state.recovery.map(|_| highest + 1);
        if let Some(generation) = recovery {
            write_generation(&self.dir, generation, self.recovery.values())?;
        }
        let next = State { current: highest + 2, recovery };
        let good_len = write_generation(&self.dir, next.current, self.current.values())?;
        let log = open_log(&generation_file(&self.dir, next.current), good_len)?;
        write_state(&self.dir, next)?;
        self.dir.parent().map_or(Ok(()), sync_dir)?;
        (self.state, self.log, self.entries) = (next, log, self.current.len());
        self.remove_unnamed();
        Ok(())
    }

    fn append(&mut self, entry: &Entry) -> Result<()> {
        self.guarded(|store| {
            let bytes = format::entry(store.state.current, store.entries, entry);
            let file = generation_file(&store.dir, store.state.current);
            store
                .log
                .write_all(&bytes)
                .and_then(|()| store.log.sync_data())
                .map_err(io_at(&file))?;
            store.entries += 1;
            Ok(())
        })
    }

    /// After a failed write nobody knows what is on disk: refuse until opened again.
    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if self.poisoned {
            return Err(RecordsError::Poisoned);
        }
        let outcome = work(self);
        self.poisoned = outcome.is_err();
        outcome
    }

    /// Removes generations that `state` does not name. Failing to is harmless.
    fn remove_unnamed(&self) {
        let keep = [Some(self.state.current), self.state.recovery];
        for (generation, path) in generations(&self.dir).unwrap_or_default() {
            if !keep.contains(&Some(generation)) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn io_at(file: &Path) -> impl FnOnce(io::Error) -> RecordsError {
    let file = file.to_path_buf();
    move |source| RecordsError::Io { file, source }
}

fn generation_file(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("gen-{generation}"))
}

fn generations(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = fs::read_dir(dir).map_err(io_at(dir))?;
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix("gen-")?.parse().ok();
    let numbered = |entry: fs::DirEntry| Some((number(&entry.path())?, entry.path()));
    Ok(entries.flatten().filter_map(numbered).collect())
}

fn read_state(dir: &Path) -> Result<Option<State>> {
    let file = dir.join("state");
    match fs::read(&file) {
        Ok(bytes) => match State::decode(&bytes) {
            Some(state) => Ok(Some(state)),
            None => Err(RecordsError::Damaged { file, offset: 0, what: "checksum or form" }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordsError::Io { file, source }),
    }
}

fn load(dir: &Path, generation: u64) -> Result<(Clients, usize, usize)> {
    let file = generation_file(dir, generation);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RecordsError::Damaged { file, offset: 0, what: "named but absent" });
        }
        Err(source) => return Err(RecordsError::Io { file, source }),
    };
    let log = format::parse(&bytes, generation).map_err(|damage| RecordsError::Damaged {
        file,
        offset: damage.offset,
        what: damage.what,
    })?;
    let (count, good_len) = (log.entries.len(), log.good_len);
    let mut clients = Clients::new();
    for entry in log.entries {
        match entry {
            Entry::Add(client) => clients.insert(client.name.clone(), client),
            Entry::Remove(client) => clients.remove(&client.name),
        };
    }
    Ok((clients, count, good_len))
}

/// Opens for appending; cuts off what an interrupted append left.
fn open_log(file: &Path, good_len: usize) -> Result<File> {
    let open = || {
        let log = OpenOptions::new().append(true).open(file)?;
        if log.metadata()?.len() != good_len as u64 {
            log.set_len(good_len as u64)?;
            log.sync_all()?;
        }
        Ok(log)
    };
    open().map_err(io_at(file))
}

fn write_generation<'a>(
    dir: &Path,
    generation: u64,
    clients: impl Iterator<Item = &'a ClientRecord>,
) -> Result<usize> {
    let mut bytes = format::header(generation);
    for (number, client) in clients.enumerate() {
        bytes.extend(format::entry(generation, number, &Entry::Add(client.clone())));
    }
    let file = generation_file(dir, generation);
    write_synced(&file, &bytes).map_err(io_at(&file))?;
    Ok(bytes.len())
}

fn write_synced(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut out = File::create(file)?;
    out.write_all(bytes)?;
    out.sync_all()
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_at(dir))
}

fn write_state(dir: &Path, state: State) -> Result<()> {
    let (file, tmp) = (dir.join("state"), dir.join("state.tmp"));
    write_synced(&tmp, state.encode().as_bytes()).map_err(io_at(&tmp))?;
    fs::rename(&tmp, &file).map_err(io_at(&file))?;
    sync_dir(dir)
}

/// Makes empty records. An earlier attempt may have been cut off before `state` was written;
/// then a generation file may exist, but it can hold no client.
fn create_new(mount: &Path, dir: &Path) -> Result<State> {
    fs::create_dir_all(dir).map_err(io_at(dir))?;
    for (_, file) in generations(dir)? {
        let length = fs::metadata(&file).map_err(io_at(&file))?.len();
        if length > format::HEADER_LEN as u64 {
            return Err(RecordsError::Damaged { file, offset: 0, what: "clients but no state" });
        }
    }
    let state = State { current: 1, recovery: None };
    write_generation(dir, state.current, std::iter::empty())?;
    sync_dir(mount)?;
    sync_dir(&mount.join(".nasd"))?;
    write_state(dir, state)?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(name: &str) -> ClientRecord {
        ClientRecord { name: name.into(), princhash: Vec::new() }
    }

    fn names(list: &[ClientRecord]) -> Vec<String> {
        list.iter().map(|c| String::from_utf8_lossy(&c.name).into_owned()).collect()
    }

    fn fresh(mount: &Path) -> Store {
        Store::open(mount, true).unwrap()
    }

    fn reopen(mount: &Path) -> Store {
        Store::open(mount, false).unwrap()
    }

    #[test]
    fn s6_missing_records_stop_the_start_unless_the_volume_is_new() {
        let mount = tempfile::tempdir().unwrap();
        assert!(matches!(Store::open(mount.path(), false), Err(RecordsError::Missing { .. })));
        assert_eq!(fresh(mount.path()).grace_start().unwrap(), []);
        assert_eq!(reopen(mount.path()).snapshot().recorded(), 0);
    }

    #[test]
    fn s6_records_that_exist_are_never_made_anew() {
        let mount = tempfile::tempdir().unwrap();
        fresh(mount.path()).create(&client("a")).unwrap();
        assert_eq!(names(&fresh(mount.path()).snapshot().current), ["a"]);
        fs::remove_file(mount.path().join(".nasd/clients/state")).unwrap();
        assert!(matches!(Store::open(mount.path(), true), Err(RecordsError::Damaged { .. })));
    }

    #[test]
    fn a_missing_generation_is_damage_not_emptiness() {
        let mount = tempfile::tempdir().unwrap();
        drop(fresh(mount.path()));
        fs::remove_file(mount.path().join(".nasd/clients/gen-1")).unwrap();
        assert!(matches!(Store::open(mount.path(), true), Err(RecordsError::Damaged { .. })));
    }

    #[test]
    fn clients_of_before_may_reclaim_after() {
        let mount = tempfile::tempdir().unwrap();
        let mut store = fresh(mount.path());
        for name in ["a", "b", "c"] {
            store.create(&client(name)).unwrap();
        }
        store.remove(&client("b")).unwrap();
        drop(store);
        let mut store = reopen(mount.path());
        assert_eq!(names(&store.grace_start().unwrap()), ["a", "c"]);
        store.create(&client("a")).unwrap();
        let snapshot = store.snapshot();
        assert_eq!((snapshot.recorded(), snapshot.reclaimed()), (2, 1));
        assert!(store.may_reclaim(&client("c")) && !store.may_reclaim(&client("b")));
    }

    #[test]
    fn s6_interrupted_grace_is_followed_by_one_with_the_union() {
        let mount = tempfile::tempdir().unwrap();
        let mut store = fresh(mount.path());
        store.create(&client("a")).unwrap();
        store.create(&client("b")).unwrap();
        store.grace_start().unwrap();
        store.create(&client("a")).unwrap();
        store.create(&client("new")).unwrap();
        drop(store);
        let mut store = reopen(mount.path());
        assert_eq!(names(&store.grace_start().unwrap()), ["a", "b", "new"]);
        drop(store);
        assert_eq!(names(&reopen(mount.path()).grace_start().unwrap()), ["a", "b", "new"]);
    }

    #[test]
    fn i11_after_grace_no_older_list_is_used() {
        let mount = tempfile::tempdir().unwrap();
        let mut store = fresh(mount.path());
        store.create(&client("gone")).unwrap();
        store.grace_start().unwrap();
        store.create(&client("back")).unwrap();
        store.grace_done().unwrap();
        drop(store);
        assert_eq!(names(&reopen(mount.path()).grace_start().unwrap()), ["back"]);
        let files = generations(&mount.path().join(DIR)).unwrap();
        assert_eq!(files.len(), 2, "{files:?}");
    }

    #[test]
    fn clients_that_cannot_be_recorded_are_refused() {
        let mount = tempfile::tempdir().unwrap();
        let mut store = fresh(mount.path());
        for length in [0, 1025] {
            let bad = ClientRecord { name: vec![1; length], princhash: Vec::new() };
            assert!(matches!(store.create(&bad), Err(RecordsError::BadClient { .. })));
        }
        store.create(&client("fine")).unwrap();
    }

    #[derive(Debug, Clone)]
    enum Step {
        Create(u8),
        Remove(u8),
        GraceStart,
        GraceDone,
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_u8..5).prop_map(Step::Create),
            2 => (0_u8..5).prop_map(Step::Remove),
            1 => Just(Step::GraceStart),
            1 => Just(Step::GraceDone),
            2 => Just(Step::Reopen),
        ];
        prop::collection::vec(step, 0..25)
    }

    fn apply(store: &mut Store, step: &Step) {
        let named = |n: &u8| client(&n.to_string());
        match step {
            Step::Create(n) => store.create(&named(n)).unwrap(),
            Step::Remove(n) => store.remove(&named(n)).unwrap(),
            Step::GraceStart => drop(store.grace_start().unwrap()),
            Step::GraceDone => store.grace_done().unwrap(),
            Step::Reopen => {}
        }
    }

    /// What somebody else may do to the files.
    #[derive(Debug, Clone)]
    enum Damage {
        Removed,
        State(Vec<u8>),
        Log { at: prop::sample::Index, to: u8 },
        Cut(prop::sample::Index),
        Tail(Vec<u8>),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        prop_oneof![
            Just(Damage::Removed),
            prop::collection::vec(any::<u8>(), 0..90).prop_map(Damage::State),
            (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, to)| Damage::Log { at, to }),
            any::<prop::sample::Index>().prop_map(Damage::Cut),
            prop::collection::vec(any::<u8>(), 1..9).prop_map(Damage::Tail),
        ]
    }

    fn spoil(store: &Store, damage: &Damage, in_recovery: bool) {
        let named = store.state.recovery.filter(|_| in_recovery).unwrap_or(store.state.current);
        let log = generation_file(&store.dir, named);
        let mut bytes = fs::read(&log).unwrap();
        match damage {
            Damage::Removed => return fs::remove_dir_all(&store.dir).unwrap(),
            Damage::State(bytes) => return fs::write(store.dir.join("state"), bytes).unwrap(),
            Damage::Log { at, to } => *at.get_mut(&mut bytes) = *to,
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Tail(tail) => bytes.extend(tail),
        }
        fs::write(log, bytes).unwrap();
    }

    /// Copies the directory as a crash would leave it, the current log cut at `cut`.
    fn crash(from: &Path, to: &Path, cut: &prop::sample::Index) {
        let (from, to) = (from.join(DIR), to.join(DIR));
        fs::create_dir_all(&to).unwrap();
        let state = read_state(&from).unwrap().unwrap();
        for entry in fs::read_dir(&from).unwrap().flatten() {
            let mut bytes = fs::read(entry.path()).unwrap();
            if entry.path() == generation_file(&from, state.current) {
                let tail = bytes.len() - format::HEADER_LEN;
                bytes.truncate(format::HEADER_LEN + cut.index(tail + 1));
            }
            fs::write(to.join(entry.file_name()), bytes).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn what_returned_is_there_after_a_crash(steps in steps()) {
            let mount = tempfile::tempdir().unwrap();
            let mut store = fresh(mount.path());
            for step in &steps {
                apply(&mut store, step);
                if matches!(step, Step::Reopen) {
                    let before = store.snapshot();
                    drop(store);
                    store = reopen(mount.path());
                    prop_assert_eq!(store.snapshot(), before);
                }
            }
            let before = store.snapshot();
            drop(store);
            prop_assert_eq!(reopen(mount.path()).snapshot(), before);
        }

        #[test]
        fn s6_damaged_records_are_written_anew(
            steps in steps(), damage in damage(), in_recovery: bool,
        ) {
            let mount = tempfile::tempdir().unwrap();
            let mut store = fresh(mount.path());
            steps.iter().for_each(|step| apply(&mut store, step));
            let whole = |s: Snapshot| (s.in_grace, s.recovery, s.current);
            let before = whole(store.snapshot());
            prop_assert!(store.mend().unwrap().is_none(), "nothing to mend");
            spoil(&store, &damage, in_recovery);
            store.mend().unwrap();
            prop_assert_eq!(whole(store.snapshot()), before.clone());
            store.create(&client("later")).unwrap();
            store.remove(&client("later")).unwrap();
            drop(store);
            prop_assert_eq!(whole(reopen(mount.path()).snapshot()), before);
        }

        #[test]
        fn a_cut_log_opens_and_goes_on(steps in steps(), cut: prop::sample::Index) {
            let (mount, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let mut store = fresh(mount.path());
            steps.iter().for_each(|step| apply(&mut store, step));
            crash(mount.path(), copy.path(), &cut);
            let mut after = reopen(copy.path());
            prop_assert_eq!(after.snapshot().recovery, store.snapshot().recovery);
            after.create(&client("later")).unwrap();
            let before = after.snapshot();
            drop(after);
            prop_assert_eq!(reopen(copy.path()).snapshot(), before);
        }
    }
}
