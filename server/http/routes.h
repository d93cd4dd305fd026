// The routes of the HTTP port, one file each, and what they share.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "engine/base/json.h"

namespace httplib {
class Server;
struct Request;
struct Response;
}  // namespace httplib

namespace sage::server {

class Daemon;
class Call;

void AddOpenAiRoutes(Daemon& daemon, httplib::Server& server);
void AddManagementRoutes(Daemon& daemon, httplib::Server& server);

// Authentication and (with `admit`) admission; on refusal the response is filled.
bool OpenCall(Call& call, const httplib::Request& request, bool admit, httplib::Response& response);
// The call ends with `status`: response, log and metrics say so.
void RefuseCall(Call& call, const httplib::Request& request, const absl::Status& status, httplib::Response& response);
// The same for a request that reached no route.
void RefuseUnrouted(Daemon& daemon, const httplib::Request& request, const absl::Status& status,
                    httplib::Response& response);
void SetJson(const Json& body, httplib::Response& response, int status = 200);
void SetError(const absl::Status& status, httplib::Response& response);

}  // namespace sage::server
