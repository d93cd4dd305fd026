// Whether the client of an HTTP request is still there, for handlers that wait without writing.
#pragma once

namespace httplib {
struct Request;
}

namespace sage::server {

// The HTTP library does not hand its socket to handlers: the connection is found among the process's descriptors by its
// two addresses, which are unique while it is open. A connection that is not found counts as there.
class PeerWatch {
 public:
  explicit PeerWatch(const httplib::Request& request);
  // The client closed the connection or its sending half. Only while the handler of the request runs.
  bool gone() const;

 private:
  int socket_ = -1;
};

}  // namespace sage::server
