"""Word lists for renaming: what tables, columns, parameters and functions of small programs are called."""

NOUNS = """user account customer order product item invoice payment book author article post comment tag category
student teacher course class grade school employee department company project task ticket issue event meeting room
hotel booking flight city country address phone email message thread channel server device sensor reading record log
session token role group member team player game match score song album artist playlist movie actor genre review rating
photo image file folder document page note report survey question answer vote poll patient doctor visit drug recipe
ingredient meal car driver trip route station train bus stock trade quote wallet coin contract vendor supplier shipment
warehouse machine job worker shift badge coupon cart brand store branch bill loan card bank nick word quiz feed link
guest host plan profile setting option rule alert metric build release version commit plugin theme asset ban warn
bot guild reminder video subscriber campaign lead deal partner animal pet plant farm crop city region zone""".split()
NOUNS = list(dict.fromkeys(NOUNS))

COLUMNS = """name title email username password status state kind type description body content text message phone address
city country zip price amount total quantity stock weight height width length color size age gender birthday date
created updated deleted active enabled visible level score points rank rating votes views likes hits url link path
filename token hash secret salt role owner author creator sender receiver recipient subject topic category tag label
code number serial version model brand comment note reason result value key data start finish deadline duration due
priority year month day hour latitude longitude location place region zone language locale currency balance rate fee
discount tax first_name last_name full_name nickname display_name user_id account_id order_id product_id post_id group_id
customer_id item_id session_id device_id room_id team_id player_id game_id parent_id created_at updated_at last_login
login identifier slug uuid uid pid ref count position seq checksum digest hostname ip port mac domain server channel
nick term keyword word search pattern prefix new_value answer question choice option""".split()

VERBS = {
    "select": ["get", "find", "load", "fetch", "lookup", "list", "search", "read", "show", "check", "count", "select"],
    "insert": ["add", "insert", "create", "save", "store", "register", "new", "record"],
    "replace": ["save", "store", "set", "put"],
    "update": ["update", "set", "change", "rename", "edit", "mark", "move"],
    "delete": ["delete", "remove", "drop", "clear", "forget", "purge"],
}

SYNONYMS = (
    ("cursor", "cur", "c", "curs", "crsr"),
    ("conn", "connection", "db", "con", "database", "dbh"),
    ("sql", "query", "stmt", "statement", "q", "command"),
    ("cmd", "command", "cmdline", "call"),
    ("rows", "results", "records", "data", "res", "result"),
    ("row", "record", "entry", "result", "r"),
)
