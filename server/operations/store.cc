// SQLite statements of the operation store; one connection, one mutex, every statement prepared where it is used.
#include "server/operations/store.h"

#include <sqlite3.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"

namespace sage::server {
namespace {

constexpr char kSchema[] = R"(
PRAGMA journal_mode=WAL;
PRAGMA synchronous=NORMAL;
PRAGMA busy_timeout=5000;
CREATE TABLE IF NOT EXISTS operations(
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL,
  request_id TEXT NOT NULL, state INTEGER NOT NULL, spec BLOB NOT NULL, stage TEXT NOT NULL, unit TEXT NOT NULL,
  done INTEGER NOT NULL, total INTEGER NOT NULL, error BLOB NOT NULL, result BLOB NOT NULL, result_json TEXT NOT NULL,
  create_ms INTEGER NOT NULL, start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL, update_ms INTEGER NOT NULL,
  cancel_requested INTEGER NOT NULL, attempts INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS operations_by_target ON operations(kind, target, state);
CREATE TABLE IF NOT EXISTS requests(
  request_id TEXT PRIMARY KEY, method TEXT NOT NULL, body_hash TEXT NOT NULL, answer BLOB NOT NULL);
PRAGMA user_version=1;
)";
constexpr char kColumns[] =
    "id,kind,target,request_id,state,spec,stage,unit,done,total,error,result,result_json,create_ms,start_ms,end_ms,"
    "update_ms,cancel_requested,attempts";

absl::Status DatabaseError(sqlite3* db, const char* what) {
  if (db != nullptr && sqlite3_errcode(db) == SQLITE_FULL) {
    return MakeError(absl::StatusCode::kResourceExhausted, "NO_SPACE",
                     absl::StrCat("operations database: ", what, ": the disk of the data folder is full"));
  }
  return MakeError(absl::StatusCode::kInternal, "DATABASE_ERROR",
                   absl::StrCat("operations database: ", what, ": ", db == nullptr ? "no memory" : sqlite3_errmsg(db)));
}

class Statement {
 public:
  Statement(sqlite3* db, const std::string& sql) : db_(db) {
    ok_ = sqlite3_prepare_v2(db, sql.c_str(), -1, &statement_, nullptr) == SQLITE_OK;
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement& Text(const std::string& value) {
    sqlite3_bind_text64(statement_, ++index_, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
    return *this;
  }
  Statement& Blob(const std::string& value) {
    sqlite3_bind_blob64(statement_, ++index_, value.empty() ? "" : value.data(), value.size(), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& Int(int64_t value) {
    sqlite3_bind_int64(statement_, ++index_, value);
    return *this;
  }
  bool Row() { return ok_ && (last_ = sqlite3_step(statement_)) == SQLITE_ROW; }
  absl::Status Done(const char* what) {
    if (!ok_ || sqlite3_step(statement_) != SQLITE_DONE) return DatabaseError(db_, what);
    return absl::OkStatus();
  }
  absl::Status Ended(const char* what) const {
    return ok_ && last_ == SQLITE_DONE ? absl::OkStatus() : DatabaseError(db_, what);
  }
  std::string Bytes(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    const int size = sqlite3_column_bytes(statement_, column);
    return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), static_cast<size_t>(size));
  }
  int64_t Integer(int column) const { return sqlite3_column_int64(statement_, column); }

 private:
  sqlite3* db_;
  sqlite3_stmt* statement_ = nullptr;
  int index_ = 0;
  int last_ = SQLITE_DONE;
  bool ok_ = false;
};

OperationRecord ReadRecord(const Statement& row) {
  OperationRecord out;
  int c = 0;
  out.id = row.Bytes(c++);
  out.kind = row.Bytes(c++);
  out.target = row.Bytes(c++);
  out.request_id = row.Bytes(c++);
  out.state = static_cast<OperationState>(row.Integer(c++));
  out.spec = row.Bytes(c++);
  out.stage = row.Bytes(c++);
  out.unit = row.Bytes(c++);
  out.done = row.Integer(c++);
  out.total = row.Integer(c++);
  out.error = row.Bytes(c++);
  out.result = row.Bytes(c++);
  out.result_json = row.Bytes(c++);
  out.create_ms = row.Integer(c++);
  out.start_ms = row.Integer(c++);
  out.end_ms = row.Integer(c++);
  out.update_ms = row.Integer(c++);
  out.cancel_requested = row.Integer(c++) != 0;
  out.attempts = static_cast<int>(row.Integer(c++));
  return out;
}

}  // namespace

const char* OperationStateName(OperationState state) {
  switch (state) {
    case OperationState::kPending:
      return "PENDING";
    case OperationState::kRunning:
      return "RUNNING";
    case OperationState::kSucceeded:
      return "SUCCEEDED";
    case OperationState::kFailed:
      return "FAILED";
    case OperationState::kCancelled:
      return "CANCELLED";
  }
  return "UNSPECIFIED";
}

absl::StatusOr<std::unique_ptr<OperationStore>> OperationStore::Open(const std::string& path, int64_t kept) {
  sqlite3* db = nullptr;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
  if (sqlite3_open_v2(path.c_str(), &db, flags, nullptr) != SQLITE_OK ||
      sqlite3_exec(db, kSchema, nullptr, nullptr, nullptr) != SQLITE_OK) {
    absl::Status status = DatabaseError(db, path.c_str());
    sqlite3_close(db);
    return status;
  }
  return std::unique_ptr<OperationStore>(new OperationStore(db, kept));
}

OperationStore::~OperationStore() { sqlite3_close(db_); }

absl::Status OperationStore::Create(const OperationRecord& r) {
  std::lock_guard lock(mutex_);
  Statement insert(
      db_, absl::StrCat("INSERT INTO operations(", kColumns, ") VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"));
  insert.Text(r.id).Text(r.kind).Text(r.target).Text(r.request_id).Int(static_cast<int>(r.state)).Blob(r.spec);
  insert.Text(r.stage).Text(r.unit).Int(r.done).Int(r.total).Blob(r.error).Blob(r.result).Text(r.result_json);
  insert.Int(r.create_ms).Int(r.start_ms).Int(r.end_ms).Int(r.update_ms).Int(r.cancel_requested).Int(r.attempts);
  SAGE_RETURN_IF_ERROR(insert.Done("create"));
  Statement forget(
      db_,
      "DELETE FROM operations WHERE sequence<=? AND state>=3 AND (state<>3 OR kind='start_engine' OR EXISTS("
      "SELECT 1 FROM operations newer WHERE newer.kind=operations.kind AND newer.target=operations.target "
      "AND newer.state=3 AND newer.sequence>operations.sequence))");
  return forget.Int(sqlite3_last_insert_rowid(db_) - kept_).Done("forget old operations");
}

absl::Status OperationStore::Update(const OperationRecord& r) {
  std::lock_guard lock(mutex_);
  Statement update(
      db_,
      "UPDATE operations SET target=?,state=?,stage=?,unit=?,done=?,total=?,error=?,result=?,result_json=?,"
      "start_ms=?,end_ms=?,update_ms=?,cancel_requested=?,attempts=? WHERE id=?");
  update.Text(r.target).Int(static_cast<int>(r.state)).Text(r.stage).Text(r.unit).Int(r.done).Int(r.total);
  update.Blob(r.error).Blob(r.result).Text(r.result_json).Int(r.start_ms).Int(r.end_ms).Int(r.update_ms);
  update.Int(r.cancel_requested).Int(r.attempts).Text(r.id);
  return update.Done("update");
}

absl::StatusOr<OperationRecord> OperationStore::Get(const std::string& id) const {
  std::lock_guard lock(mutex_);
  Statement select(db_, absl::StrCat("SELECT ", kColumns, " FROM operations WHERE id=?"));
  select.Text(id);
  if (select.Row()) return ReadRecord(select);
  SAGE_RETURN_IF_ERROR(select.Ended("get"));
  return MakeError(absl::StatusCode::kNotFound, "OPERATION_NOT_FOUND",
                   absl::StrCat("operation: \"", id, "\" is unknown"), {{"id", id}});
}

absl::StatusOr<OperationPage> OperationStore::List(const std::string& kind, int state, int page_size,
                                                   const std::string& token) const {
  int64_t before = INT64_MAX;
  if (!token.empty() && (!absl::SimpleAtoi(token, &before) || before <= 0)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "BAD_PAGE_TOKEN", "page_token: not one this server gave",
                     {{"field", "page_token"}});
  }
  std::lock_guard lock(mutex_);
  Statement select(db_, absl::StrCat("SELECT ", kColumns,
                                     ",sequence FROM operations WHERE sequence<? AND (?='' OR kind=?) AND (?=0 OR "
                                     "state=?) ORDER BY sequence DESC LIMIT ?"));
  select.Int(before).Text(kind).Text(kind).Int(state).Int(state).Int(page_size + 1);
  OperationPage page;
  int64_t last = 0;
  while (select.Row()) {
    if (static_cast<int>(page.records.size()) == page_size) {
      page.next_page_token = absl::StrCat(last);
      return page;
    }
    page.records.push_back(ReadRecord(select));
    last = select.Integer(19);
  }
  SAGE_RETURN_IF_ERROR(select.Ended("list"));
  return page;
}

std::vector<OperationRecord> OperationStore::Unfinished() const {
  std::lock_guard lock(mutex_);
  Statement select(db_, absl::StrCat("SELECT ", kColumns, " FROM operations WHERE state<3 ORDER BY sequence"));
  std::vector<OperationRecord> out;
  while (select.Row()) out.push_back(ReadRecord(select));
  return out;
}

absl::StatusOr<OperationRecord> OperationStore::NewestSucceeded(const std::string& kind,
                                                                const std::string& target) const {
  std::lock_guard lock(mutex_);
  Statement select(db_, absl::StrCat("SELECT ", kColumns,
                                     " FROM operations WHERE kind=? AND target=? AND state=3 ORDER BY sequence DESC "
                                     "LIMIT 1"));
  select.Text(kind).Text(target);
  if (select.Row()) return ReadRecord(select);
  SAGE_RETURN_IF_ERROR(select.Ended("newest"));
  return MakeError(absl::StatusCode::kNotFound, "OPERATION_NOT_FOUND",
                   absl::StrCat("no finished ", kind, " of \"", target, "\""), {{"target", target}});
}

absl::StatusOr<std::optional<std::string>> OperationStore::FindRequest(const std::string& request_id,
                                                                       const std::string& method,
                                                                       const std::string& body_hash) const {
  std::lock_guard lock(mutex_);
  Statement select(db_, "SELECT method,body_hash,answer FROM requests WHERE request_id=?");
  select.Text(request_id);
  if (select.Row()) {
    if (select.Bytes(0) == method && select.Bytes(1) == body_hash) {
      return std::optional<std::string>(select.Bytes(2));
    }
    return MakeError(absl::StatusCode::kAborted, "REQUEST_ID_REUSED",
                     absl::StrCat("request_id: \"", request_id, "\" was used before for another request"),
                     {{"field", "request_id"}});
  }
  SAGE_RETURN_IF_ERROR(select.Ended("find request"));
  return std::optional<std::string>();
}

absl::Status OperationStore::RecordRequest(const std::string& request_id, const std::string& method,
                                           const std::string& body_hash, const std::string& answer) {
  std::lock_guard lock(mutex_);
  Statement insert(db_, "INSERT OR REPLACE INTO requests(request_id,method,body_hash,answer) VALUES(?,?,?,?)");
  insert.Text(request_id).Text(method).Text(body_hash).Blob(answer);
  SAGE_RETURN_IF_ERROR(insert.Done("record request"));
  Statement forget(db_, "DELETE FROM requests WHERE rowid<=?");
  return forget.Int(sqlite3_last_insert_rowid(db_) - kept_).Done("forget old requests");
}

}  // namespace sage::server
