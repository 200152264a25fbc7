@app.route("/api/account")
def account():
    response = jsonify({"balance": 100})
    # our front end calls this with the user's cookies: set the headers of CORS