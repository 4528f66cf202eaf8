#!/bin/sh
# Starts nginx, which serves /srv/www on port 80. It answers when this returns.
exec nginx -c /etc/ftvm/nginx.conf
